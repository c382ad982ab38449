"""The effective sample size compared with simulated rollouts of known correlation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.training.telemetry.proportion import Proportion, proportion


def test_independent_rollouts_count_fully() -> None:
    """With one rollout per group, every group is an independent trial."""
    counts = np.array([True] * 44 + [False] * 212)
    measured = proportion(counts, group_size=1)
    assert measured.value == 44 / 256
    assert measured.effective_n == 256


def test_rollouts_that_agree_within_their_group_count_once() -> None:
    counts = np.repeat(np.array([True, False, True, False]), 8)
    assert proportion(counts, group_size=8).effective_n == 4


@pytest.mark.parametrize("value", [True, False])
def test_all_or_none(value: bool) -> None:
    measured = proportion(np.full(256, value), group_size=8)
    assert (measured.value, measured.effective_n) == (float(value), 256)


@pytest.mark.parametrize("spread", [0.0, 0.15, 0.3])
def test_the_variance_is_that_of_repeated_measurements(spread: float) -> None:
    """For prompts with shares of 0.5 +- spread, p (1 - p) / n must equal the
    variance of the measured share.
    """
    generator = np.random.default_rng(7)
    shares = 0.5 + spread * generator.choice([-1.0, 1.0], size=(4000, 64, 1))
    rollouts = generator.random((4000, 64, 8)) < shares
    measured = [proportion(one.reshape(-1), group_size=8) for one in rollouts]
    variance = float(np.var([one.value for one in measured]))
    estimated = float(np.median([one.value * (1 - one.value) / one.effective_n for one in measured]))
    assert estimated == pytest.approx(variance, rel=0.15)


def test_only_scored_rollouts_count() -> None:
    counts, graded = np.array([True, True, True, False]), np.array([True, False, False, False])
    measured = proportion(counts, group_size=2, among=graded)
    assert (measured.groups, measured.count, measured.total) == (1, 1, 1)


def test_without_rollouts_the_share_is_nan() -> None:
    assert math.isnan(Proportion().value)
    assert math.isnan(Proportion().effective_n)
    assert proportion(np.array([], dtype=np.bool_), group_size=4) == Proportion()


@given(st.lists(st.booleans(), min_size=8, max_size=64).filter(lambda drawn: len(drawn) % 4 == 0))
def test_blocks_add_up(drawn: list[bool]) -> None:
    counts = np.array(drawn)
    middle = len(drawn) // 8 * 4
    parts = proportion(counts[:middle], 4) + proportion(counts[middle:], 4)
    whole = proportion(counts, 4)
    assert parts == whole
    assert whole.groups <= whole.effective_n <= whole.count
