"""The results that every simulated run must have, whatever went wrong on the way."""

from __future__ import annotations

from pathlib import Path

from orchestrator.training.simulation.run import Simulation, SimulationSettings
from orchestrator.training.simulation.stages import Faults

MANY_FAULTS = Faults(
    rollout_death=0.03,
    reward_hang=0.01,
    late_publish=0.02,
    learner_death=0.01,
    learner_death_elsewhere=0.01,
    restart_failure=0.2,
    rollouts_lost=0.02,
    batch_lost=0.01,
    weights_lost=0.002,
    disk_full=0.1,
)
ALMOST_ONLY_FAULTS = Faults(
    rollout_death=0.2,
    reward_hang=0.1,
    learner_death=0.1,
    learner_death_elsewhere=0.1,
    restart_failure=0.5,
    rollouts_lost=0.15,
    batch_lost=0.1,
    weights_lost=0.05,
    disk_full=0.3,
)


def groups_trained(settings: SimulationSettings) -> set[int]:
    """The groups that a run with these settings trains on: the first ids, without the uninformative ones
    (every eighth) if they are replaced.
    """
    wanted, trained, group_id = settings.steps * settings.prompts_per_step, set[int](), 0
    while len(trained) < wanted:
        if not settings.dynamic_sampling or group_id % 8:
            trained.add(group_id)
        group_id += 1
    return trained


def assert_complete(simulation: Simulation, settings: SimulationSettings, directory: Path) -> None:
    """Every group was trained on once, none was too stale, nothing is left over, and the
    exported model is the trained one.
    """
    trained = simulation.learner.trained
    assert len(trained) == settings.steps * settings.prompts_per_step
    assert set(trained) == groups_trained(settings)
    prompts = simulation.learner.prompts
    assert all(prompt == f"sim/train/{group_id}" for group_id, prompt in prompts.items())
    assert max(simulation.learner.staleness, default=0) <= settings.max_staleness
    assert simulation.buffer.outstanding() == []
    assert simulation.buffer.refused == 0
    assert [int(line) for line in (directory / "model" / "trained.txt").read_text().split()] == trained
    reported = [report.step for report in simulation.trace.reports]
    assert reported[-1] == settings.steps
