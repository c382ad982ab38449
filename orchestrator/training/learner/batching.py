"""Distributes rows over ranks and micro-batches: token-budget packing, balanced over ranks.

Micro-batches have one of two formats, depending on the model's attention:

    padded   rows side by side, sorted by length, padded on the right      cost: rows x longest
    packed   rows one after the other in one long row, no padding          cost: sum of lengths

Causal attention never looks to the right, so right padding needs no mask. `packed` needs attention that
separates rows by their position ids at no extra cost (FlashAttention's variable-length kernels); other
attention would compute the square of the total length. A packed micro-batch is filled up to the budget.
Padded rows are sorted and split where the padding costs least, because one row of twice the length would
double the cost of its neighbours.

The loss is a sum over tokens, with weights computed from the whole minibatch, so nothing that is decided here
changes the gradient.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

BatchFormat = Literal["padded", "packed"]

MicroBatchPlan = list[list[list[int]]]
"""[rank][micro-batch][row]: indices of rows. All ranks have the same number of micro-batches; those of a rank
with less work are empty at the end.
"""

_ONE_MORE = 1 / 16
"""Fixed cost of a padded micro-batch as a fraction of the budget: an additional one must
save that much padding.
"""


def plan(
    lengths: Sequence[int], world_size: int, micro_batch_tokens: int, layout: BatchFormat
) -> MicroBatchPlan:
    """Distribute rows of `lengths` tokens over ranks and micro-batches of at most `micro_batch_tokens`
    (padding counted).

    A row that is longer than the budget gets its own micro-batch. There is at least one micro-batch.
    """
    ranks = [_pack(rows, lengths, micro_batch_tokens, layout) for rows in balance(lengths, world_size)]
    count = max(1, *(len(micro_batches) for micro_batches in ranks))
    return [micro_batches + [[] for _ in range(count - len(micro_batches))] for micro_batches in ranks]


def balance(lengths: Sequence[int], world_size: int) -> list[list[int]]:
    """Rows of each rank, longest first, with similar total lengths. Each row goes to the rank with the fewest
    tokens so far (Graham's longest-processing-time rule: at most 4/3 of the optimal maximum).
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    ranks: list[list[int]] = [[] for _ in range(world_size)]
    loads = [(0, rank) for rank in range(world_size)]
    for row in order:
        load, rank = heapq.heappop(loads)
        ranks[rank].append(row)
        heapq.heappush(loads, (load + lengths[row], rank))
    return ranks


def _pack(rows: Sequence[int], lengths: Sequence[int], budget: int, layout: BatchFormat) -> list[list[int]]:
    """Split rows, longest first, into micro-batches."""
    sizes = np.array([lengths[row] for row in rows], dtype=np.int64)
    ends = _padded_ends(sizes, budget) if layout == "padded" else _packed_ends(sizes, budget)
    return [list(rows[start:end]) for start, end in pairwise([0, *ends])]


def _packed_ends(sizes: NDArray[np.int64], budget: int) -> list[int]:
    """Fill each micro-batch up to the budget."""
    ends: list[int] = []
    held = 0
    for row, size in enumerate(sizes.tolist()):
        if row and held + size > budget:
            ends.append(row)
            held = 0
        held += size
    return [*ends, len(sizes)] if len(sizes) else []


def _padded_ends(sizes: NDArray[np.int64], budget: int) -> list[int]:
    """The split with the least cost, which is rows x longest plus `_ONE_MORE` for each micro-batch.

    Dynamic programming over the first n rows. Sizes decrease, so the micro-batch that ends at n begins at one
    of the rows first .. n - 1, and `first` only increases.
    """
    count, first = len(sizes), 0
    best, begins = np.zeros(count + 1), np.zeros(count + 1, dtype=np.int64)
    for end in range(1, count + 1):
        while first < end - 1 and sizes[first] * (end - first) > budget:
            first += 1
        costs = best[first:end] + sizes[first:end] * np.arange(end - first, 0, -1)
        begins[end] = first + int(costs.argmin())
        best[end] = costs.min() + _ONE_MORE * budget
    ends: list[int] = []
    end = count
    while end > 0:
        ends.append(end)
        end = int(begins[end])
    return ends[::-1]
