"""`launch.prepare` and `launch.run` with simulated actors: a whole job without Ray, stopped and resumed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pytest

from orchestrator import launch
from orchestrator.cli.app import run_command_line
from orchestrator.clock import SystemClock
from orchestrator.config.compose import compose
from orchestrator.errors import DrainedError
from orchestrator.runs.lease import FencedError
from orchestrator.runs.record import RunState
from orchestrator.training.checkpoints.format import complete
from orchestrator.training.cluster.stages import ClusterStages
from orchestrator.training.records import StepReport
from orchestrator.training.rewards.pool import RewardPool
from orchestrator.training.rollouts.pool import RolloutPool
from orchestrator.training.simulation.stages import (
    Draws,
    Faults,
    SimulatedLearner,
    SimulatedRewardWorker,
    SimulatedRolloutWorker,
    Timing,
)
from orchestrator.training.supervision.elastic import ElasticPool, Tell, WorkerState
from orchestrator.training.supervision.pool import WorkerPool
from orchestrator.training.usage import MemorySink
from orchestrator.training.waiting import Waits

pytestmark = pytest.mark.slow

QUICK = Timing(generate=0.002, score=0.001, update=0.002, publish=0.001, write=0.002)
SMALL = ["experiment=smoke", "tracking=none", "evaluation.every=0", "checkpoint.every=0", "steps=100000"]


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.asynccontextmanager
    async def stages(*arguments: object) -> AsyncGenerator[ClusterStages]:
        draws, faults, clock = Draws(0), Faults(), SystemClock()
        waits = cast(Waits, arguments[-1])

        async def replace(worker: Any) -> Any:
            return worker

        def pool(worker: object) -> Any:
            return WorkerPool([cast(Any, worker)], replace, 0, lambda lost: None)

        workers = pool(SimulatedRolloutWorker("rollout-0", draws, QUICK, faults, clock, MemorySink()))

        @contextlib.asynccontextmanager
        async def hire(index: int, incarnation: int, tell: Tell) -> AsyncGenerator[Any]:
            tell(WorkerState.STARTING, "")
            yield SimulatedRolloutWorker(f"rollout-{index}", draws, QUICK, faults, clock, MemorySink())

        elastic = ElasticPool(workers, hire, 0, cast(Any, arguments[5]), clock)
        try:
            yield ClusterStages(
                cast(Any, RolloutPool(workers, waits)),
                cast(
                    Any,
                    RewardPool(
                        pool(SimulatedRewardWorker("reward-0", draws, QUICK, faults, clock, 60.0)), waits
                    ),
                ),
                cast(Any, SimulatedLearner(draws, QUICK, faults, clock)),
                cast(Any, elastic),
            )
        finally:
            await elastic.close()

    monkeypatch.setattr("orchestrator.launch.attempt.cluster_stages", stages)
    monkeypatch.setattr("orchestrator.launch.launcher.ray_session", lambda *_: contextlib.nullcontext())


class Watching:
    """Views that perform an action at one step."""

    def __init__(self, step: int, act: Callable[[], None]) -> None:
        self._step, self._act = step, act

    @contextlib.contextmanager
    def open(self, title: str, steps: int, currency: str) -> Generator[launch.LiveView]:
        yield self

    def update(self, report: StepReport, cost: Decimal | None) -> None:
        if report.step == self._step:
            self._act()

    def message(self, text: str) -> None:
        pass


def test_a_run_stopped_during_training_writes_a_checkpoint_and_is_resumed(
    tmp_path: Path,
) -> None:
    prepared = launch.prepare(compose("grpo", [*SMALL, f"output_dir={tmp_path}"]), "r1")
    assert list(tmp_path.iterdir()) == []
    stop = launch.StopSwitch()

    def ask() -> None:
        thread = threading.Thread(target=stop.ask, args=(DrainedError("Stopped by SIGTERM."),))
        thread.start()
        thread.join()

    outcome = launch.run(prepared, Watching(3, ask), stop)
    assert (outcome.state, outcome.exit_code, outcome.why) == (RunState.DRAINED, 4, "Stopped by SIGTERM.")
    (checkpoint,) = complete(outcome.directory.checkpoints)
    step = int(checkpoint.name.removeprefix("step-"))
    assert step >= 3

    again = launch.prepare_resume(outcome.directory, [f"steps={step + 2}"])
    outcome = launch.run(again)
    assert (outcome.state, outcome.exit_code) == (RunState.DONE, 0)
    assert [line.step for line in outcome.directory.read_metrics()] == list(range(1, step + 3))
    assert (outcome.directory.record().attempt, outcome.directory.newest_fence()) == (2, 2)


def test_a_running_run_is_asked_for_more_and_fewer_workers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = launch.prepare(compose("grpo", [*SMALL, f"output_dir={tmp_path}"]), "r1")
    directory, stop = type(prepared.directory)(prepared.directory.path), launch.StopSwitch()
    codes: list[int] = []

    def ask() -> None:
        requests = (["--add", "2"], ["--remove", "1", "--now"], ["--remove", "2"], [])
        codes.extend(run_command_line(["workers", str(directory.path), *request]) for request in requests)
        stop.ask(DrainedError("Stopped by SIGTERM."))

    asking = threading.Thread(target=ask)
    outcome = launch.run(prepared, Watching(3, asking.start), stop)
    asking.join()
    assert outcome.state is RunState.DRAINED
    assert codes == [0, 0, 2, 0]
    out, err = capsys.readouterr()
    assert "for 2 rollout workers to join; it wants 3 now." in out
    assert "for 1 rollout worker to leave; it wants 2 now." in out
    assert "2 of 2 rollout workers are running; at least 1 must stay." in out
    assert "2 of 2 rollout workers cannot leave run r1: at least 1 must stay (rollout.min_workers)." in err
    assert [event["worker"] for event in directory.read_events("worker_joined")] == ["rollout-1", "rollout-2"]
    (left,) = directory.read_events("worker_left")
    assert (left["worker"], left["workers"]) == ("rollout-2", 2)
    assert [event["change"] for event in directory.read_events("pool_requested")] == [2, -1]


def test_a_file_among_the_requests_that_is_none_is_refused_by_the_run(tmp_path: Path) -> None:
    prepared = launch.prepare(compose("grpo", [*SMALL, f"output_dir={tmp_path}"]), "r1")
    directory, stop = type(prepared.directory)(prepared.directory.path), launch.StopSwitch()

    def ask() -> None:
        directory.requests.mkdir()
        (directory.requests / "1.json").write_text("import os")
        while not list(directory.read_events("pool_requested")):
            threading.Event().wait(0.01)
        stop.ask(DrainedError("Stopped by SIGTERM."))

    asking = threading.Thread(target=ask)
    launch.run(prepared, Watching(3, asking.start), stop)
    asking.join()
    (event,) = directory.read_events("pool_requested")
    assert event["refused"] == "it cannot be read: JSONDecodeError"
    assert event["wanted"] == 1


def test_a_run_that_was_taken_over_ends_without_writing_state(tmp_path: Path) -> None:
    prepared = launch.prepare(compose("grpo", [*SMALL, f"output_dir={tmp_path}"]), "r1")
    directory = type(prepared.directory)(prepared.directory.path)

    def take_over() -> None:
        directory.begin(job="grpo", purpose="final", steps=7, at_ns=1, fence=directory.newest_fence())

    with pytest.raises(FencedError, match="taken over"):
        launch.run(prepared, Watching(3, take_over))
    record = directory.record()
    assert (record.state, record.attempt, record.steps) == (RunState.RUNNING, 2, 7)
    assert not [line for line in directory.read_metrics() if line.step > 3]
