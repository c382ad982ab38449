from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.percent import percent


@given(st.integers(1, 100_000).flatmap(lambda many: st.tuples(st.integers(0, many), st.just(many))))
def test_only_exact_shares_are_rounded_to_0_or_100_percent(counts: tuple[int, int]) -> None:
    right, many = counts
    shown = percent(right / many)
    assert (shown == "100%") == (right == many)
    assert (shown == "0%") == (right == 0)
    assert float(shown.strip("<>%")) == pytest.approx(100 * right / many, abs=0.1)


def test_shares_above_one_are_formatted() -> None:
    assert percent(Decimal("1.204")) == "120.4%"
    assert percent(Decimal("0.9999")) == ">99.9%"
