"""Sharing idle time among those who used the same lease on the same day."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.ledger.accounts import CountedLine
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.lines import LineKey
from orchestrator.ledger.sharing import apportion, share_idle

EMPTY = LineKey(
    day=0,
    run_id="",
    attempt=1,
    lease_id="",
    node="n",
    resource="gpu",
    sku="h100",
    region="",
    commitment="",
    role="r",
    activity="",
    organisation="",
    cost_centre="",
    team="",
    project="",
    pipeline="",
    job="",
    stage="",
    purpose="",
    unit_price="",
    currency="",
)


def line(ns: int, run: str, activity: str, lease: str = "a", day: int = 20000) -> CountedLine:
    key = EMPTY._replace(day=day, run_id=run, lease_id=lease, activity=activity)
    return CountedLine(key.month, key, ns)


def by_run(lines: list[CountedLine]) -> dict[tuple[str, str], int]:
    return {(one.key.run_id, one.key.activity): one.ns for one in lines}


JUDGE = [
    line(60, "r1", "score"),
    line(20, "r2", "score"),
    line(40, "judge", "idle"),
    line(1, "judge", "lost"),
]


def test_idle_time_of_a_shared_judge_goes_to_its_users():
    assert by_run(share_idle(JUDGE, "keep")) == by_run(JUDGE)
    assert by_run(share_idle(JUDGE, "proportional")) == {("r1", "score"): 91, ("r2", "score"): 30}
    assert by_run(share_idle(JUDGE, "uniform")) == {("r1", "score"): 81, ("r2", "score"): 40}


def test_unused_days_leases_and_adjustments_keep_their_idle_time():
    lines = [
        line(5, "r", "idle"),
        line(7, "r", "idle", lease="b"),
        line(3, "r", "update", lease="b", day=20001),
        line(-3, "r", "idle", lease="c"),
        line(3, "r", "update", lease="c"),
    ]
    assert sorted(share_idle(lines, "uniform")) == sorted(lines)


def test_an_unknown_method_is_refused():
    with pytest.raises(LedgerError, match="keep, proportional, uniform"):
        share_idle([], "weighted by mood")


@pytest.mark.slow
@settings(max_examples=200, derandomize=True)
@given(st.integers(0, 10**25), st.lists(st.integers(0, 10**20), min_size=1, max_size=9).filter(any))
def test_shares_add_up_and_none_is_off_by_a_nanosecond(total: int, weights: list[int]):
    shares = apportion(total, weights)
    assert sum(shares) == total
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share * sum(weights) - total * weight) < sum(weights)
