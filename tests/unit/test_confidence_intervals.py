"""Wilson intervals compared with the definition: the shares that a test at 5 % would not reject."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.confidence_intervals import Z95, wilson_interval


@given(st.integers(1, 5000), st.data())
def test_the_bounds_solve_the_score_equation(n: int, data: st.DataObject) -> None:
    """At a bound b, |p - b| is exactly z standard errors, with the error computed at b itself."""
    share = data.draw(st.integers(0, n)) / n
    for bound in wilson_interval(share, n):
        if 0 < bound < 1:
            assert abs(share - bound) == pytest.approx(Z95 * math.sqrt(bound * (1 - bound) / n), abs=1e-9)


@given(st.integers(1, 5000), st.data())
def test_the_share_is_inside_and_the_interval_is_symmetric_under_negation(
    n: int, data: st.DataObject
) -> None:
    share = data.draw(st.integers(0, n)) / n
    low, high = wilson_interval(share, n)
    assert 0 <= low <= share <= high <= 1
    assert wilson_interval(1 - share, n) == (pytest.approx(1 - high), pytest.approx(1 - low))


@pytest.mark.parametrize(
    ("right", "low", "high"), [(44, 13.1, 22.3), (20, 5.1, 11.8), (255, 97.8, 99.9)], ids=str
)
def test_the_figures_of_the_demo(right: int, low: float, high: float) -> None:
    assert [round(100 * bound, 1) for bound in wilson_interval(right / 256, 256)] == [low, high]


def test_a_perfect_small_sample_has_a_wide_interval() -> None:
    assert wilson_interval(1.0, 4) == (pytest.approx(0.51, abs=0.005), 1.0)


@pytest.mark.parametrize(("share", "n"), [(-0.1, 4), (1.1, 4), (0.5, 0), (0.5, -1), (math.nan, 4)])
def test_an_invalid_share_is_rejected(share: float, n: float) -> None:
    with pytest.raises(ValueError, match="a share between 0 and 1"):
        wilson_interval(share, n)
