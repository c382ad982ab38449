"""Distributing rows to ranks and micro-batches."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.training.learner.batching import BatchFormat, balance, plan

_LENGTHS = st.lists(st.integers(1, 40), max_size=40)


@pytest.mark.slow
@given(_LENGTHS, st.integers(1, 4), st.integers(1, 90), st.sampled_from(["padded", "packed"]))
def test_every_row_is_planned_once_within_the_budget_on_equally_many_micro_batches(
    lengths: list[int], world_size: int, budget: int, layout: BatchFormat
) -> None:
    planned = plan(lengths, world_size, budget, layout)

    assert len(planned) == world_size
    assert len({len(micro_batches) for micro_batches in planned}) == 1
    assert len(planned[0]) >= 1
    micro_batches = list(itertools.chain(*planned))
    assert sorted(itertools.chain(*micro_batches)) == list(range(len(lengths)))
    for rows in micro_batches:
        sizes = [lengths[row] for row in rows]
        cost = sum(sizes) if layout == "packed" else len(sizes) * max(sizes, default=0)
        assert cost <= budget or len(rows) == 1


@given(_LENGTHS, st.integers(1, 4))
def test_ranks_differ_by_one_row_at_most(lengths: list[int], world_size: int) -> None:
    loads = [sum(lengths[row] for row in rows) for rows in balance(lengths, world_size)]
    assert max(loads) - min(loads) <= max(lengths, default=0)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [("padded", [[1], [2, 4], [0, 3]]), ("packed", [[1], [2, 4, 0, 3]])],
)
def test_long_rows_come_first_and_padding_counts(layout: BatchFormat, expected: list[list[int]]) -> None:
    assert plan([2, 10, 4, 2, 4], 1, 12, layout) == [expected]


@given(_LENGTHS, st.integers(1, 90))
def test_the_split_of_padded_rows_is_optimal(lengths: list[int], budget: int) -> None:
    sizes = sorted(lengths, reverse=True)

    def cost(cut: list[list[int]]) -> float:
        return sum(max(part) * len(part) + budget / 16 for part in cut)

    cheapest: dict[int, float] = {0: 0.0}
    for end in range(1, len(sizes) + 1):
        starts = [s for s in range(end) if sizes[s] * (end - s) <= budget or s == end - 1]
        cheapest[end] = min(cheapest[start] + cost([sizes[start:end]]) for start in starts)

    planned = plan(lengths, 1, budget, "padded")[0]
    assert cost([[lengths[row] for row in rows] for rows in planned if rows]) == pytest.approx(
        cheapest[len(sizes)]
    )


def test_a_large_budget_is_not_filled_with_padding() -> None:
    lengths = [100] * 4 + [10] * 40
    assert plan(lengths, 1, 8192, "padded") == [[[0, 1, 2, 3], list(range(4, 44))]]


def test_a_rank_without_work_keeps_pace_with_empty_micro_batches() -> None:
    assert plan([8, 8, 8], 2, 8, "padded") == [[[0], [2]], [[1], []]]
    assert plan([], 2, 8, "padded") == [[[]], [[]]]
