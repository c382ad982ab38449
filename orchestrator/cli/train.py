"""One attempt at one training run: the loop on a cluster, with everything that watches it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from orchestrator.cli.assembly import heldout_prompts, loop_settings, parts_of, placement_of
from orchestrator.cli.bookkeeper import Bookkeeper
from orchestrator.cli.progress import Progress
from orchestrator.cli.run_observer import RunObserver
from orchestrator.clock import Clock
from orchestrator.errors import BudgetStopError, DrainedError, OrchestratorError, WorkerLostError
from orchestrator.ledger.ledger import Ledger
from orchestrator.run_config import RunConfig
from orchestrator.training.buffer import Buffer
from orchestrator.training.checkpoint import Checkpointer
from orchestrator.training.cluster.stages import ClusterStages, cluster_stages
from orchestrator.training.evaluation import Evaluator
from orchestrator.training.loop import Stages, TrainingLoop
from orchestrator.training.prompts.source import EpochPrompts
from orchestrator.training.run_directory import RunDirectory

from orchestrator.training.telemetry.tracker import Outcome, RunIdentity, Tracker
from orchestrator.training.telemetry.tracking import build_tracker
from orchestrator.training.usage import RunDeclared, SpoolSink, new_event_id

logger = logging.getLogger(__name__)

SHIP_EVERY_SECONDS = 2.0


class StopSwitch:
    """Where a signal or a budget asks for an orderly end, whether or not a loop runs at that moment."""

    def __init__(self) -> None:
        self._reason: OrchestratorError | None = None
        self._loop: TrainingLoop | None = None

    @property
    def asked(self) -> bool:
        """Whether somebody asked."""
        return self._reason is not None

    def ask(self, reason: OrchestratorError) -> None:
        """Ask the loop that runs, or the next one, to make a checkpoint and raise `reason`."""
        self._reason = self._reason or reason
        if self._loop is not None:
            self._loop.request_stop(self._reason)

    @contextlib.contextmanager
    def connected(self, loop: TrainingLoop) -> Generator[None]:
        """`loop` is the one that is asked while the body runs."""
        self._loop = loop
        if self._reason is not None:
            loop.request_stop(self._reason)
        try:
            yield
        finally:
            self._loop = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a run: the first, or one that goes on from a checkpoint."""

    config: RunConfig
    directory: RunDirectory
    prompts: EpochPrompts
    number: int
    resumed: bool
    pipeline: str
    stage: str


async def train(attempt: Attempt, switch: StopSwitch, console: Console, clock: Clock) -> None:
    """Train to the end. Raises what stopped it; leases are closed and the books are shipped in any case."""
    config, directory = attempt.config, attempt.directory
    sink = SpoolSink(directory.ledger / f"{attempt.number}-controller.jsonl")
    sink.emit(_declaration(attempt, clock))
    with contextlib.ExitStack() as watching:
        books = watching.enter_context(_bookkeeper(attempt))
        tracker = watching.enter_context(_tracked(attempt, clock))
        title = f"{attempt.pipeline} · {attempt.stage}" if attempt.stage else directory.run_id
        view = watching.enter_context(
            Progress(title, config.steps, console, config.budget.currency, clock=clock)
        )
        observer = RunObserver(directory, tracker, view, lambda: books.cost, config.budget, clock)
        observer.on_stop = switch.ask

        def on_lost(lost: WorkerLostError) -> None:
            observer.on_event("worker_lost", {"worker": lost.worker, "reason": lost.reason})

        view.message("starting the actors")
        parts = parts_of(config, directory.run_id, attempt.number, directory.path)
        async with cluster_stages(
            config.cluster, placement_of(config), parts, sink, clock, on_lost
        ) as stages:
            loop = _loop(attempt, stages, observer, clock)
            with switch.connected(loop):
                await loop.run(resume=attempt.resumed)


def _loop(attempt: Attempt, stages: ClusterStages, observer: RunObserver, clock: Clock) -> TrainingLoop:
    config, path = attempt.config, attempt.directory.path.resolve()
    evaluator = Evaluator(
        heldout_prompts(config, attempt.prompts),
        config.rollout.max_new_tokens,
        stages.rollouts,
        stages.rewards,
        path / "evaluations",
    )
    wired = Stages(
        prompts=attempt.prompts,
        rollouts=stages.rollouts,
        rewards=stages.rewards,
        learner=stages.learner,
        evaluator=evaluator,
        checkpoints=Checkpointer(path / "checkpoints", config.checkpoint.keep),
        observer=observer,
    )
    buffer = Buffer(config.rollout.prompts_per_step, config.max_staleness)
    return TrainingLoop(loop_settings(config), wired, buffer, path, clock)


def _declaration(attempt: Attempt, clock: Clock) -> RunDeclared:
    config = attempt.config
    return RunDeclared(
        event_id=new_event_id(),
        at_ns=clock.now_ns(),
        run_id=attempt.directory.run_id,
        attempt=attempt.number,
        job=config.job,
        purpose=config.purpose,
        organisation=config.organisation,
        cost_centre=config.cost_centre,
        team=config.team,
        project=config.project,
        pipeline=attempt.pipeline,
        stage=attempt.stage,
    )


def ledger_url(config: RunConfig) -> str:
    """Where this run's usage is booked."""
    return config.ledger.url or f"sqlite:///{(config.output_dir / 'ledger.db').resolve()}"


@contextlib.contextmanager
def _bookkeeper(attempt: Attempt) -> Generator[Bookkeeper]:
    config = attempt.config
    books = Bookkeeper(
        lambda: Ledger.open(ledger_url(config), config.price_book),
        attempt.directory.ledger,
        attempt.directory.run_id,
        SHIP_EVERY_SECONDS,
    )
    try:
        yield books
    finally:
        if not books.close():
            logger.error("usage events are not in the ledger yet; they stay in %s", attempt.directory.ledger)


@contextlib.contextmanager
def _tracked(attempt: Attempt, clock: Clock) -> Generator[Tracker]:
    """The run in the tracker: parameters and files before, outcome, curve and report after."""
    config, directory = attempt.config, attempt.directory
    tracker = build_tracker(config.tracking, config.output_dir, clock)
    tracker.start(
        RunIdentity(
            run_id=directory.run_id,
            job=config.job,
            purpose=config.purpose,
            team=config.team,
            project=config.project,
            parent_run_id=attempt.pipeline or None,
        )
    )
    tracker.log_params(config.to_json())
    tracker.log_artifact(directory.config)
    tracker.log_artifact(directory.manifest)
    outcome: Outcome = "failed"
    try:
        yield tracker
        outcome = "done"
    except BudgetStopError:
        outcome = "budget"
        raise
    except DrainedError:
        outcome = "drained"
        raise
    finally:
        curve = _write_curve(directory)
        if curve is not None:
            tracker.log_artifact(curve)
        tracker.finish(outcome)


def _write_curve(directory: RunDirectory) -> Path | None:
    """The learning curve as a picture; None before the first step.

    A picture that can't be drawn costs no run.
    """
    return None
    path = directory.path / "learning_curve.png"
    try:
        return path if write_learning_curve([directory], path) else None
    except (OSError, ValueError) as error:
        logger.warning("no learning curve: %s", error)
        return None
