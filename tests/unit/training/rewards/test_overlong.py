from __future__ import annotations

import numpy as np
import pytest

from orchestrator.training.rewards.overlong import overlong_punishment


@pytest.mark.parametrize(
    ("length", "punishment"),
    # DAPO's own setting: 16384 tokens expected, 4096 of buffer, 20480 at the most.
    [(0, 0.0), (16384, 0.0), (16385, -1 / 4096), (18432, -0.5), (19456, -0.75), (20480, -1.0)],
)
def test_the_published_setting(length: int, punishment: float) -> None:
    assert overlong_punishment(np.array([length]), 20480, 4096).tolist() == [punishment]


def test_beyond_the_limit_the_punishment_stays_at_minus_one() -> None:
    assert overlong_punishment(np.array([101, 500]), 100, 40).tolist() == [-1.0, -1.0]


def test_the_whole_length_may_be_buffer() -> None:
    assert overlong_punishment(np.array([0, 25, 100]), 100, 100).tolist() == [0.0, -0.25, -1.0]


def test_a_limit_below_the_buffer_shortens_the_buffer() -> None:
    limits = np.array([20, 20, 20], dtype=np.int32)
    assert overlong_punishment(np.array([0, 10, 20]), limits, 40).tolist() == [0.0, -0.5, -1.0]
