"""Which rank computes which rows, in which micro-batches: token-budget packing, balanced over ranks.

Two layouts of a micro-batch, chosen by what the model's attention can do:

    padded   rows side by side, sorted by length, padded on the right      cost: rows x longest
    packed   rows one after the other in one long row, no padding          cost: sum of lengths

Causal attention never looks to the right, so right padding needs no mask. `packed` needs attention that keeps
rows apart by their position ids at no extra cost (FlashAttention's variable-length kernels); with other
attention it would pay for the square of the sum.

The loss is a sum of weighted tokens with weights of the whole minibatch, so no choice made here changes the
gradient.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Literal

Layout = Literal["padded", "packed"]

Plan = list[list[list[int]]]
"""[rank][micro-batch][row]: indices of rows. Every rank has as many micro-batches; a rank with less work has
empty ones at its end.
"""


def plan(lengths: Sequence[int], world_size: int, micro_batch_tokens: int, layout: Layout) -> Plan:
    """Distribute rows of `lengths` tokens over ranks and micro-batches of at most `micro_batch_tokens`
    (padding counted).

    A row that is longer than the budget gets a micro-batch of its own. There is at least one micro-batch.
    """
    ranks = [_pack(rows, lengths, micro_batch_tokens, layout) for rows in balance(lengths, world_size)]
    count = max(1, *(len(micro_batches) for micro_batches in ranks))
    return [micro_batches + [[] for _ in range(count - len(micro_batches))] for micro_batches in ranks]


def balance(lengths: Sequence[int], world_size: int) -> list[list[int]]:
    """Rows of each rank, longest first, with about equal sums: each row goes to the rank that has the least
    (Graham's longest processing time first: at most 4/3 of the best possible maximum).
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    ranks: list[list[int]] = [[] for _ in range(world_size)]
    loads = [(0, rank) for rank in range(world_size)]
    for row in order:
        load, rank = heapq.heappop(loads)
        ranks[rank].append(row)
        heapq.heappush(loads, (load + lengths[row], rank))
    return ranks


def _pack(rows: Sequence[int], lengths: Sequence[int], budget: int, layout: Layout) -> list[list[int]]:
    """Fill micro-batches in the given order (longest first), so that neighbours need little padding."""
    micro_batches: list[list[int]] = []
    cost = longest = 0
    for row in rows:
        if layout == "padded":
            longest = max(longest, lengths[row]) if micro_batches else lengths[row]
            added = longest * (len(micro_batches[-1]) + 1) if micro_batches else lengths[row]
        else:
            added = cost + lengths[row]
        if not micro_batches or added > budget:
            micro_batches.append([row])
            cost = longest = lengths[row]
        else:
            micro_batches[-1].append(row)
            cost = added
    return micro_batches
