"""Heavy-tailed lengths: what the order of dispatch and over-sampling save, in virtual time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.training.dispatch import LengthAwareDispatch
from orchestrator.training.simulation.run import Simulation, SimulationSettings, simulate
from orchestrator.training.simulation.side_by_side import HeavyTail

TAIL = HeavyTail(epoch=64, side_by_side=4)
"""An epoch is two steps; each worker samples 4 of its 16 groups at the same time."""
BASE = SimulationSettings(
    seed=3,
    steps=8,
    max_staleness=0,
    prompts_per_step=32,
    rollout_workers=2,
    rollouts_per_worker=1000,
    checkpoint_every=0,
    tail=TAIL,
)


def seconds(simulation: Simulation, after: int) -> float:
    """Virtual seconds of the steps after that one."""
    ends = [at / 1e9 for at, kind, _ in simulation.trace.lines if kind == "step"]
    return ends[-1] - ends[after - 1]


def test_the_longest_rollouts_start_first_from_the_second_epoch_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aware = simulate(BASE, tmp_path / "aware")
    monkeypatch.setattr(LengthAwareDispatch, "note", lambda *_: None)
    blind = simulate(BASE, tmp_path / "blind")
    assert seconds(aware, after=2) < 0.85 * seconds(blind, after=2)
    batches = [
        [sorted(simulation.learner.trained[first : first + 32]) for first in range(0, 256, 32)]
        for simulation in (aware, blind)
    ]
    assert batches[0] == batches[1], "the order of dispatch does not change what a step trains on"


def test_over_sampling_leaves_the_longest_rollouts_out(tmp_path: Path) -> None:
    tail = replace(TAIL, side_by_side=24, epoch=1000)
    plain = simulate(replace(BASE, tail=tail), tmp_path / "plain")
    excess = simulate(replace(BASE, tail=tail, over_sampled=8), tmp_path / "excess")
    assert seconds(excess, after=1) < 0.5 * seconds(plain, after=1)
    longest = round(TAIL.tokens * TAIL.factor)
    trained = [report.trained.tokens for report in excess.trace.reports]
    assert max(trained) < 32 * longest and sum(trained) < sum(
        report.trained.tokens for report in plain.trace.reports
    )
