"""Losses of three seeded trainings compared with text files, which a refactoring must not change."""

from __future__ import annotations

import pytest

from tests.golden.training import GOLDEN, STEPS, losses, read


@pytest.mark.parametrize("name", GOLDEN)
def test_the_losses_equal_those_of_the_file(name: str) -> None:
    expected = read(name)
    assert len(expected) == STEPS
    # CPUs round differently; a change of the formula differs by orders of magnitude more than this.
    assert losses(name) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_losses_differ_from_each_other_and_from_step_to_step() -> None:
    values = [value for name in GOLDEN for value in read(name)]
    assert len(set(values)) == len(values)
