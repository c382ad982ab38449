"""A run that was stopped or crashed continues as if it had never been interrupted."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import BudgetStopError, DrainedError, OrchestratorError
from orchestrator.training.checkpoints.format import complete
from orchestrator.training.simulation.run import SimulationSettings, Stop, Trace, assemble, simulate
from orchestrator.training.simulation.stages import Faults, Timing
from orchestrator.training.simulation.virtual_time import VirtualClock, run_in_virtual_time
from tests.simulation.expected import MANY_FAULTS, assert_complete

BASE = SimulationSettings(seed=3, steps=20, max_staleness=1, prompts_per_step=8)
DRAINED = DrainedError("asked to stop")


@pytest.mark.parametrize("dynamic_sampling", [False, True], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("max_staleness", [0, 1, 3])
@pytest.mark.parametrize("at_seconds", [0.0, 0.3, 9.0, 30.0])
def test_a_drained_and_resumed_run_ends_as_if_never_stopped(
    at_seconds: float, max_staleness: int, dynamic_sampling: bool, tmp_path: Path
) -> None:
    settings = replace(BASE, max_staleness=max_staleness, dynamic_sampling=dynamic_sampling, evaluate_every=4)
    with pytest.raises(DrainedError, match="asked to stop"):
        simulate(settings, tmp_path, stop=Stop(at_seconds, DRAINED))
    assert complete(tmp_path / "checkpoints")
    resumed = simulate(settings, tmp_path, resume=True)
    assert_complete(resumed, settings, tmp_path)
    if max_staleness == 0:
        assert resumed.learner.trained == simulate(settings, tmp_path / "unbroken").learner.trained


@pytest.mark.parametrize("max_staleness", [0, 3])
def test_a_run_that_is_stopped_again_and_again_amid_faults(max_staleness: int, tmp_path: Path) -> None:
    settings = replace(
        BASE, max_staleness=max_staleness, dynamic_sampling=True, faults=MANY_FAULTS, checkpoint_every=0
    )
    for life in range(100):
        lived = replace(settings, seed=life)
        try:
            simulation = simulate(lived, tmp_path, resume=life > 0, stop=Stop(12.0 + life, DRAINED))
        except DrainedError:
            continue
        assert life > 2
        assert_complete(simulation, settings, tmp_path)
        return
    pytest.fail("the run never ended")


def test_a_budget_stops_a_run_with_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(BudgetStopError):
        simulate(BASE, tmp_path, stop=Stop(8.0, BudgetStopError("the money is spent")))
    assert complete(tmp_path / "checkpoints")


def test_a_stop_does_not_wait_for_rollouts(tmp_path: Path) -> None:
    settings = replace(
        BASE,
        faults=Faults(reward_hang=1.0, hang_seconds=500),
        call_timeout_seconds=1_000,
        timing=Timing(write=0.0),
    )

    async def main() -> float:
        simulation = assemble(settings, tmp_path, VirtualClock())
        asyncio.get_running_loop().call_later(10.0, simulation.loop.request_stop, DRAINED)
        with pytest.raises(DrainedError):
            await simulation.loop.run()
        return asyncio.get_running_loop().time()

    assert run_in_virtual_time(main()) == 10.0


def test_the_first_stop_reason_counts(tmp_path: Path) -> None:
    async def main() -> None:
        simulation = assemble(BASE, tmp_path, VirtualClock())
        simulation.loop.request_stop(BudgetStopError("first"))
        simulation.loop.request_stop(DRAINED)
        await simulation.loop.run()

    with pytest.raises(BudgetStopError, match="first"):
        run_in_virtual_time(main())


def test_a_stop_after_the_last_step_changes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        simulation = assemble(BASE, tmp_path, VirtualClock())
        finish = simulation.trace.on_step

        def stop_at_the_end(report: Any) -> None:
            finish(report)
            if report.step == BASE.steps:
                simulation.loop.request_stop(DRAINED)

        simulation.trace.on_step = stop_at_the_end
        await simulation.loop.run()
        assert_complete(simulation, BASE, tmp_path)

    run_in_virtual_time(main())


def test_a_learner_may_die_while_the_run_is_drained(tmp_path: Path) -> None:
    settings = replace(BASE, faults=Faults(learner_death_elsewhere=0.4), seed=8)
    with pytest.raises(DrainedError):
        simulate(settings, tmp_path, stop=Stop(3.0, DRAINED))
    resumed = simulate(replace(settings, faults=Faults()), tmp_path, resume=True)
    assert_complete(resumed, settings, tmp_path)


class ControllerKilledError(Exception):
    """Stands for a SIGKILL, after which nothing is written."""


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
@pytest.mark.parametrize("killed_at", [1, 4, 5, 13])
def test_a_killed_controller_continues_from_the_last_checkpoint(
    killed_at: int, max_staleness: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(BASE, max_staleness=max_staleness, checkpoint_every=4)
    with monkeypatch.context() as patch:

        def killed(trace: Trace, report: Any) -> None:
            if report.step == killed_at:
                raise ControllerKilledError

        patch.setattr(Trace, "on_step", killed)
        with pytest.raises(ControllerKilledError):
            simulate(settings, tmp_path)
    resumed = simulate(settings, tmp_path, resume=True)
    assert_complete(resumed, settings, tmp_path)
    assert resumed.trace.reports[0].step == (killed_at - 1) // 4 * 4 + 1


def test_a_run_without_a_checkpoint_starts_again(tmp_path: Path) -> None:
    assert_complete(simulate(BASE, tmp_path, resume=True), BASE, tmp_path)


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    first = simulate(BASE, tmp_path)
    again = simulate(BASE, tmp_path, resume=True)
    assert again.learner.trained == first.learner.trained
    assert again.trace.reports == []


@pytest.mark.parametrize("change", [{"steps": 30}, {"max_staleness": 0}, {"max_staleness": 5}], ids=str)
def test_a_run_may_continue_with_other_settings(change: Mapping[str, int], tmp_path: Path) -> None:
    settings = replace(BASE, max_staleness=3)
    with pytest.raises(DrainedError):
        simulate(settings, tmp_path, stop=Stop(8.0, DRAINED))
    changed = replace(settings, **change)
    assert_complete(simulate(changed, tmp_path, resume=True), changed, tmp_path)


def test_groups_beyond_a_smaller_window_survive_another_stop(tmp_path: Path) -> None:
    settings = replace(BASE, max_staleness=3, checkpoint_every=0)
    with pytest.raises(DrainedError):
        simulate(settings, tmp_path, stop=Stop(8.0, DRAINED))
    settings = replace(settings, max_staleness=0)
    before = complete(tmp_path / "checkpoints")[-1].name
    with pytest.raises(DrainedError):
        simulate(settings, tmp_path, resume=True, stop=Stop(3.0, DRAINED))
    assert complete(tmp_path / "checkpoints")[-1].name > before
    assert_complete(simulate(settings, tmp_path, resume=True), settings, tmp_path)


def test_a_resumed_run_may_need_fewer_groups_than_are_outstanding(tmp_path: Path) -> None:
    settings = replace(BASE, max_staleness=3, checkpoint_every=0)
    with pytest.raises(DrainedError):
        simulate(settings, tmp_path, stop=Stop(8.0, DRAINED))
    step = int(complete(tmp_path / "checkpoints")[-1].name.removeprefix("step-"))
    resumed = simulate(replace(settings, steps=step + 1), tmp_path, resume=True)
    assert len(set(resumed.learner.trained)) == (step + 1) * settings.prompts_per_step


def test_a_stop_without_a_checkpoint_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoints").write_text("a file where a directory must be")
    with pytest.raises(OrchestratorError, match="step 0 could not be written") as caught:
        simulate(BASE, tmp_path, stop=Stop(0.0, DRAINED))
    assert caught.value.exit_code == 1
