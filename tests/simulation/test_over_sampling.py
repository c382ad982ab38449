"""Over-sampling: a batch does not wait for its slowest groups, and what is dropped is accounted for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import DrainedError
from orchestrator.training.simulation.run import Simulation, SimulationSettings, Stop, simulate
from tests.simulation.audited import audited, messages, run_recorded
from tests.simulation.expected import MANY_FAULTS

BASE = SimulationSettings(seed=5, steps=30, max_staleness=0, prompts_per_step=8, checkpoint_every=5)
TOKENS_PER_GROUP = BASE.timing.tokens_per_rollout * BASE.group_size


def seconds(simulation: Simulation) -> float:
    return simulation.trace.lines[-1][0] / 1e9


def dropped_groups(simulation: Simulation) -> int:
    return round(sum(report.metrics["rollout/dropped_groups"] for report in simulation.trace.reports))


@pytest.mark.parametrize("dynamic_sampling", [False, True], ids=["fixed", "dynamic"])
def test_a_synchronous_step_is_shorter_and_still_on_policy(dynamic_sampling: bool, tmp_path: Path) -> None:
    settings = replace(BASE, dynamic_sampling=dynamic_sampling)
    plain = simulate(settings, tmp_path / "plain")
    excess = simulate(replace(settings, over_sampled=4), tmp_path / "excess")
    assert seconds(excess) < 0.9 * seconds(plain)
    assert dropped_groups(plain) == 0 < dropped_groups(excess)
    assert set(excess.learner.staleness) == {0}
    assert len(set(excess.learner.trained)) == len(excess.learner.trained) == 30 * 8
    assert excess.buffer.outstanding() == []


def test_a_straggler_is_dropped_only_where_it_would_hold_up_a_batch(tmp_path: Path) -> None:
    settings = replace(BASE, max_staleness=1, rollout_workers=8)
    plain = simulate(settings, tmp_path / "plain")
    excess = simulate(replace(settings, over_sampled=4), tmp_path / "excess")
    assert seconds(excess) < seconds(plain)
    assert 0 < dropped_groups(excess) < 30 * 4
    assert max(excess.learner.staleness) == 1


@pytest.mark.parametrize("dynamic_sampling", [False, True], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_the_account_closes_amid_faults_stops_and_kills(
    max_staleness: int, dynamic_sampling: bool, tmp_path: Path
) -> None:
    settings = replace(
        BASE,
        steps=60,
        max_staleness=max_staleness,
        dynamic_sampling=dynamic_sampling,
        over_sampled=3,
        evaluate_every=20,
        faults=replace(MANY_FAULTS, answer_lost=0.03),
        timing=replace(BASE.timing, portions=1 + max_staleness),
        rollouts_per_worker=1 + 8 * max_staleness,
    )
    for attempt in range(1, 20):
        lived = replace(settings, seed=attempt)
        stop = Stop(40.0, DrainedError("asked to stop")) if attempt == 1 else None
        simulation = run_recorded(
            lived, tmp_path, attempt=attempt, stop=stop, killed_at=35 if attempt == 2 else None
        )
        audit = audited(tmp_path)
        assert messages(audit) == []
        if simulation is not None:
            break
    else:
        pytest.fail("the run never ended")
    trained = simulation.learner.trained
    assert len(set(trained)) == len(trained) == 60 * 8 == audit.groups.trained
    assert audit.tokens.trained == 60 * 8 * TOKENS_PER_GROUP
    assert audit.groups.aborted > 0


def test_dropped_groups_are_aborted_or_surplus(tmp_path: Path) -> None:
    simulation = run_recorded(replace(BASE, over_sampled=4), tmp_path)
    assert simulation is not None
    audit = audited(tmp_path)
    assert messages(audit) == []
    assert audit.groups.aborted + audit.groups.surplus == dropped_groups(simulation)
    assert audit.groups.aborted > 0 and audit.groups.surplus > 0
    assert audit.groups.trained == 30 * 8
    assert audit.tokens.surplus == audit.groups.surplus * TOKENS_PER_GROUP


def test_with_dynamic_sampling_no_group_is_requested_once_the_batch_is_filled(tmp_path: Path) -> None:
    """Uninformative groups are replaced only as long as groups are missing."""
    settings = replace(BASE, dynamic_sampling=True, over_sampled=4)
    simulation = simulate(settings, tmp_path)
    sampled = sum(report.metrics.get("rollout/count", 0) for report in simulation.trace.reports)
    needed = 30 * 8 * BASE.group_size
    assert needed < sampled < 1.4 * needed
