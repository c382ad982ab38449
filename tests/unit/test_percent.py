from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.percent import percent


@given(st.integers(1, 100_000).flatmap(lambda many: st.tuples(st.integers(0, many), st.just(many))))
def test_only_all_is_100_percent_and_only_nothing_is_0_percent(counts: tuple[int, int]) -> None:
    right, many = counts
    shown = percent(right / many)
    assert (shown == "100%") == (right == many)
    assert (shown == "0%") == (right == 0)
    assert float(shown.strip("<>%")) == pytest.approx(100 * right / many, abs=0.1)


def test_money_that_is_spent_beyond_its_limit_is_a_share_too() -> None:
    assert percent(Decimal("1.204")) == "120.4%"
    assert percent(Decimal("0.9999")) == ">99.9%"
