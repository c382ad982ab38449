"""Simulated runs that wait: what they say of hanging workers, late publishes and slow disks."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.training.events import WaitEnded, Waiting, WaitKind
from orchestrator.training.simulation.run import SimulationSettings, simulate
from orchestrator.training.simulation.stages import Faults, Timing

WEDGED = 0.02


def waits(settings: SimulationSettings, directory: Path) -> tuple[list[Waiting], list[WaitEnded]]:
    events = simulate(settings, directory).trace.events
    return (
        [event for event in events if isinstance(event, Waiting)],
        [event for event in events if isinstance(event, WaitEnded)],
    )


def test_a_run_in_which_nothing_hangs_reports_no_wait(tmp_path: Path) -> None:
    settings = SimulationSettings(seed=1, steps=60, max_staleness=1, evaluate_every=7)
    assert waits(settings, tmp_path) == ([], [])


@pytest.mark.parametrize("max_staleness", [0, 4])
@pytest.mark.parametrize(
    ("faults", "what", "where"),
    [
        (Faults(reward_hang=WEDGED), WaitKind.SCORE, "reward-"),
        (Faults(late_publish=WEDGED), WaitKind.PUBLISH, "the learner"),
    ],
)
def test_what_hangs_is_named(
    max_staleness: int, faults: Faults, what: WaitKind, where: str, tmp_path: Path
) -> None:
    settings = SimulationSettings(seed=1, steps=100, max_staleness=max_staleness, faults=faults)
    began, ended = waits(settings, tmp_path)
    assert began
    assert {event.what for event in began} == {what}
    assert all(event.where.startswith(where) for event in began)
    assert sorted((event.what, event.where) for event in began) == sorted(
        (event.what, event.where) for event in ended
    )
    # A hanging reward worker is given up after 30 s, a late publish takes 60 s.
    assert {round(event.seconds) for event in ended} == {30 if what is WaitKind.SCORE else 60}


def test_a_slow_disk_is_named_when_the_next_checkpoint_waits_for_it(tmp_path: Path) -> None:
    settings = SimulationSettings(
        seed=1, steps=12, max_staleness=0, checkpoint_every=2, timing=Timing(write=90.0)
    )
    began, _ = waits(settings, tmp_path)
    assert began
    assert {(event.what, event.where) for event in began} == {(WaitKind.CHECKPOINT, "the learner")}
    assert "to write a checkpoint to disk" in began[0].message


def test_workers_that_take_long_to_come_back_are_named(tmp_path: Path) -> None:
    settings = SimulationSettings(
        seed=1, steps=30, max_staleness=0, faults=Faults(rollout_death=0.1), timing=Timing(restart=100.0)
    )
    began, _ = waits(settings, tmp_path)
    assert {event.what for event in began} == {WaitKind.START}
    assert all(event.where.startswith("rollout-") for event in began)
