"""Failures that must end a run immediately, with their plain error."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import (
    DataLostError,
    FailureBudgetExceededError,
    NonFiniteError,
    OrchestratorError,
    WorkerLostError,
)
from orchestrator.training.events import RecordLost
from orchestrator.training.simulation.run import Simulation, SimulationSettings, assemble, simulate
from orchestrator.training.simulation.stages import (
    CountingSummary,
    Faults,
    SimulatedLearner,
    SimulatedRewardWorker,
    SimulatedRolloutWorker,
)
from orchestrator.training.simulation.virtual_time import (
    DeadlockError,
    VirtualClock,
    run_in_virtual_time,
)
from orchestrator.training.stages import Generated, PublishedWeights, RolloutRequest
from tests.simulation.expected import assert_complete

BASE = SimulationSettings(seed=5, steps=20, max_staleness=1, prompts_per_step=8, checkpoint_every=5)


def end_of(settings: SimulationSettings, directory: Path) -> tuple[BaseException, Simulation]:
    """Return the error that ended a failing run. No task may be left over when it is raised."""

    async def main() -> tuple[BaseException, Simulation]:
        simulation = assemble(settings, directory, VirtualClock())
        try:
            await simulation.loop.run()
        except Exception as error:  # noqa: BLE001 - the subject of the test
            await asyncio.gather(simulation.rollouts.close(), simulation.rewards.close())
            assert asyncio.all_tasks() == {asyncio.current_task()}
            return error, simulation
        raise AssertionError("the run ended well")

    return run_in_virtual_time(main())


@pytest.mark.parametrize("evaluate_every", [0, 1], ids=["in training", "in evaluation"])
@pytest.mark.parametrize(
    "faults",
    [
        Faults(rollout_death=1.0),
        Faults(reward_hang=1.0),
        Faults(rollout_death=0.3, restart_failure=1.0),
    ],
    ids=["rollout workers", "reward workers", "restarts"],
)
def test_losing_more_workers_than_tolerated_ends_the_run(
    faults: Faults, evaluate_every: int, tmp_path: Path
) -> None:
    settings = replace(BASE, faults=faults, max_restarts=3, evaluate_every=evaluate_every)
    error, _ = end_of(settings, tmp_path)
    assert type(error) is FailureBudgetExceededError
    assert (error.what, error.count, error.budget) == ("workers lost", 4, 3)


@pytest.mark.parametrize("faults", [Faults(learner_death=1.0), Faults(learner_death_elsewhere=1.0)])
def test_losing_more_learners_than_tolerated_ends_the_run(faults: Faults, tmp_path: Path) -> None:
    error, simulation = end_of(replace(BASE, faults=faults, max_learner_rebuilds=3), tmp_path)
    assert type(error) is FailureBudgetExceededError
    assert (error.what, error.count, error.budget) == ("learner ranks lost", 4, 3)
    assert simulation.learner.rebuilt == 3


@pytest.mark.parametrize("evaluate_every", [0, 1], ids=["in training", "in evaluation"])
@pytest.mark.parametrize(
    "faults", [Faults(rollouts_lost=1.0), Faults(weights_lost=1.0), Faults(batch_lost=1.0)], ids=str
)
def test_losing_more_data_than_tolerated_ends_the_run(
    faults: Faults, evaluate_every: int, tmp_path: Path
) -> None:
    """No process died, so no worker is replaced and no learner rank is rebuilt."""
    settings = replace(
        BASE,
        faults=faults,
        evaluate_every=evaluate_every,
        max_data_losses=5,
        max_learner_rebuilds=0,
        max_restarts=0,
    )
    error, simulation = end_of(settings, tmp_path)
    assert type(error) is FailureBudgetExceededError
    assert (error.what, error.count, error.budget) == ("rollouts or weights lost", 6, 5)
    assert simulation.learner.rebuilt == simulation.rollouts.restarts == simulation.rewards.restarts == 0


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
@pytest.mark.parametrize("evaluate_every", [0, 3])
@pytest.mark.parametrize(
    "faults", [Faults(rollouts_lost=0.2), Faults(weights_lost=0.2), Faults(batch_lost=0.2)], ids=str
)
def test_lost_data_is_sampled_again_without_restarting_actors(
    faults: Faults, evaluate_every: int, max_staleness: int, tmp_path: Path
) -> None:
    settings = replace(
        BASE,
        steps=40,
        faults=faults,
        max_staleness=max_staleness,
        evaluate_every=evaluate_every,
        max_learner_rebuilds=0,
        max_restarts=0,
    )
    simulation = simulate(settings, tmp_path)
    assert_complete(simulation, settings, tmp_path)
    assert {event.kind for event in simulation.trace.events} & {"rollouts_lost", "weights_lost"}
    assert simulation.learner.rebuilt == simulation.rollouts.restarts == simulation.rewards.restarts == 0


def test_weights_lost_with_their_learner_lead_to_a_rebuild(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rollout workers notice first, while the trainer waits for their rollouts. Publishing
    again detects the dead learner.
    """
    publish = SimulatedLearner.publish

    async def dead(self: SimulatedLearner, version: int) -> PublishedWeights:
        if version == 5 and not self.rebuilt and version in published:
            raise WorkerLostError("learner-0", "dead since it published version 5")
        published.add(version)
        return await publish(self, version)

    async def generate(
        self: SimulatedRolloutWorker, request: RolloutRequest, weights: PublishedWeights
    ) -> AsyncGenerator[Generated]:
        if weights.version == 5 and not started[0].learner.rebuilt:
            raise DataLostError(self.name, "the publisher is gone")
        async for generated in sample(self, request, weights):
            yield generated

    published: set[int] = set()
    sample = SimulatedRolloutWorker.generate
    monkeypatch.setattr(SimulatedLearner, "publish", dead)
    monkeypatch.setattr(SimulatedRolloutWorker, "generate", generate)
    settings = replace(BASE, max_staleness=0, max_learner_rebuilds=1, max_data_losses=1)

    started: list[Simulation] = []

    async def main() -> Simulation:
        started.append(assemble(settings, tmp_path, VirtualClock()))
        await started[0].loop.run()
        return started[0]

    simulation = run_in_virtual_time(main())
    assert simulation.learner.rebuilt == 1
    assert [event.kind for event in simulation.trace.events if event.kind != "checkpoint"] == [
        "weights_lost",
        "learner_lost",
        "restored",
    ]


@pytest.mark.parametrize("evaluate_every", [0, 5], ids=["of steps", "of evaluations"])
def test_a_full_disk_loses_records_but_not_the_run(evaluate_every: int, tmp_path: Path) -> None:
    settings = replace(BASE, faults=Faults(disk_full=1.0), evaluate_every=evaluate_every)
    simulation = simulate(settings, tmp_path)
    lost = [event for event in simulation.trace.events if isinstance(event, RecordLost)]
    heldout = [0, 5, 10, 15, 20] if evaluate_every else []
    assert sorted((event.record, event.step) for event in lost) == sorted(
        [("step", step) for step in (1, 10, 20)] + [("heldout", step) for step in heldout]
    )
    assert "no space left on device" in lost[0].reason
    assert simulation.learner.rebuilt == 0
    assert len(simulation.learner.trained) == BASE.steps * BASE.prompts_per_step


def test_lost_records_have_a_budget(tmp_path: Path) -> None:
    error, simulation = end_of(replace(BASE, faults=Faults(disk_full=1.0), max_lost_records=1), tmp_path)
    assert type(error) is FailureBudgetExceededError
    assert (error.what, error.count) == ("steps whose rollouts could not be recorded", 2)
    assert "no space left on device" in str(error)
    assert max(report.step for report in simulation.trace.reports) == 10


def test_groups_without_a_training_signal_have_a_budget(tmp_path: Path) -> None:
    error, _ = end_of(replace(BASE, dynamic_sampling=True, max_resampled=0.0), tmp_path)
    assert type(error) is FailureBudgetExceededError
    assert (error.what, error.budget) == ("groups without a training signal in one step", 0)


def test_rollouts_that_cannot_be_scored_have_a_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = CountingSummary.metrics
    monkeypatch.setattr(
        CountingSummary, "metrics", lambda self: {**real(self), "reward/failed_fraction": 0.25}
    )
    error, simulation = end_of(replace(BASE, max_staleness=0), tmp_path)
    assert type(error) is FailureBudgetExceededError
    assert (error.what, error.count, error.budget) == ("rollouts that could not be scored in one step", 8, 0)
    assert simulation.trace.reports == []


@pytest.mark.parametrize("max_staleness", [0, 3])
def test_a_nan_ends_the_run_without_a_rebuild(max_staleness: int, tmp_path: Path) -> None:
    settings = replace(BASE, max_staleness=max_staleness, faults=Faults(non_finite_step=12))
    error, simulation = end_of(settings, tmp_path)
    assert type(error) is NonFiniteError
    assert error.step == 12
    assert len(simulation.learner.trained) == 12 * BASE.prompts_per_step
    assert simulation.learner.rebuilt == 0
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-000005",
        "step-000010",
    ]


def break_generate(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async def broken(*_: object) -> AsyncGenerator[None]:
        await asyncio.sleep(0.1)
        raise error
        yield

    monkeypatch.setattr(SimulatedRolloutWorker, "generate", broken)


def break_score(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async def broken(*_: object) -> None:
        await asyncio.sleep(0.1)
        raise error

    monkeypatch.setattr(SimulatedRewardWorker, "score", broken)


def break_update(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async def broken(*_: object) -> None:
        await asyncio.sleep(0.1)
        raise error

    monkeypatch.setattr(SimulatedLearner, "update", broken)


def break_record(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(SimulatedRewardWorker, "record", broken)


@pytest.mark.parametrize("evaluate_every", [0, 1])
@pytest.mark.parametrize("break_stage", [break_generate, break_score, break_update, break_record])
@pytest.mark.parametrize("error", [ValueError("a bug"), OrchestratorError("on purpose")], ids=repr)
def test_other_errors_are_raised_unchanged(
    break_stage: Callable[[pytest.MonkeyPatch, Exception], None],
    error: Exception,
    evaluate_every: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    break_stage(monkeypatch, error)
    found, _ = end_of(replace(BASE, evaluate_every=evaluate_every), tmp_path)
    assert found is error


def test_an_error_of_the_observer_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("orchestrator.training.simulation.run.Trace.on_step", broken)
    error, _ = end_of(BASE, tmp_path)
    assert type(error) is OSError


def test_a_cancelled_run_leaves_nothing_behind(tmp_path: Path) -> None:
    async def main() -> None:
        simulation = assemble(replace(BASE, steps=1000), tmp_path, VirtualClock())
        run = asyncio.ensure_future(simulation.loop.run())
        await asyncio.sleep(7.0)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_in_virtual_time(main())


def test_the_simulation_detects_a_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests the simulation itself: a run that would hang forever is an error, not a test that never ends."""

    async def hang(*_: object) -> AsyncGenerator[None]:
        await asyncio.Event().wait()
        yield

    monkeypatch.setattr(SimulatedRolloutWorker, "generate", hang)
    with pytest.raises(DeadlockError):
        simulate(BASE, tmp_path)
