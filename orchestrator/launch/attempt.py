"""One attempt at one training run: the loop on a cluster, with everything that watches it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from orchestrator.capacity.utilisation import utilisation_of
from orchestrator.cli.progress import Progress
from orchestrator.clock import Clock
from orchestrator.config.run_config import RunConfig
from orchestrator.errors import BudgetStopError, DrainedError, OrchestratorError, WorkerLostError
from orchestrator.launch.budgets import BudgetSubject, BudgetWarning, RunBudgets, StepTimer
from orchestrator.launch.observer import RunObserver
from orchestrator.launch.outcome import ledger_url
from orchestrator.launch.prepare import heldout_prompts, loop_settings, mirror_of, placement_of, run_spec
from orchestrator.launch.usage_shipper import UsageShipper
from orchestrator.launch.webhook import post_aside
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.prices import PriceBook
from orchestrator.runs.directory import RunDirectory
from orchestrator.training.buffer import Buffer
from orchestrator.training.checkpoints.checkpointer import Checkpointer
from orchestrator.training.cluster.stages import ClusterStages, cluster_stages
from orchestrator.training.evaluation import Evaluator, SampledAnswers
from orchestrator.training.events import CheckpointWritten, WorkerLost
from orchestrator.training.loop import Stages, TrainingLoop
from orchestrator.training.prompts.source import EpochPrompts
from orchestrator.training.recording import TolerantRecorder
from orchestrator.training.telemetry.tracker import Tracker
from orchestrator.training.usage import PurposeSet, RunDeclared, SpoolSink, UsageSink, new_event_id

logger = logging.getLogger(__name__)

SHIP_EVERY_SECONDS = 2.0

FIRST_ROUND_SECONDS = 10.0
"""How long a run waits at its start for its budgets: without an answer it goes on, as without a ledger."""


class StopSwitch:
    """Where a signal or a budget asks for an orderly end, whether or not a loop runs at that moment."""

    def __init__(self) -> None:
        self._reason: OrchestratorError | None = None
        self._loop: TrainingLoop | None = None
        self._starting: asyncio.Task[Any] | None = None
        self._running: asyncio.Task[Any] | None = None
        self._broken_off: OrchestratorError | None = None

    @property
    def asked(self) -> bool:
        """Whether somebody asked."""
        return self._reason is not None

    def ask(self, reason: OrchestratorError) -> None:
        """Ask the loop that runs, or the next one, to make a checkpoint and raise `reason`; what only
        starts is broken off.
        """
        self._reason = self._reason or reason
        if self._starting is not None:
            self._starting.cancel()
        if self._loop is not None:
            self._loop.request_stop(self._reason)

    def cancel(self, reason: OrchestratorError) -> None:
        """End what runs where it is, without a checkpoint; the last one stands. It raises `reason`."""
        self.ask(reason)
        if self._running is not None and self._broken_off is None:
            self._broken_off = reason
            self._running.cancel()

    @contextlib.contextmanager
    def starting(self) -> Generator[None]:
        """The body starts what has nothing to save yet: asked to stop, it is broken off and
        raises the reason.
        """
        if self._reason is not None:
            raise self._reason
        task = asyncio.current_task()
        assert task is not None
        self._starting = task
        try:
            yield
        except asyncio.CancelledError:
            if self._reason is None or task.uncancel():
                raise  # somebody else wants this task to end
            raise self._reason from None
        finally:
            self._starting = None

    @contextlib.contextmanager
    def connected(self, loop: TrainingLoop) -> Generator[None]:
        """`loop` is the one that is asked while the body runs; broken off, the body raises the reason."""
        self._loop = loop
        if self._reason is not None:
            loop.request_stop(self._reason)
        self._running = asyncio.current_task()
        assert self._running is not None
        try:
            yield
        except asyncio.CancelledError:
            if self._broken_off is None or self._running.uncancel():
                raise  # somebody else wants this task to end
            raise self._broken_off from None
        finally:
            self._loop = self._running = None


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


async def train(
    attempt: Attempt, tracker: Tracker, switch: StopSwitch, console: Console, clock: Clock
) -> None:
    """Train to the end. Raises what stopped it; leases are closed and the books are shipped in any case."""
    config, directory = attempt.config, attempt.directory
    sink = SpoolSink(directory.ledger / f"{attempt.number}-controller.jsonl")
    sink.emit(_declaration(attempt, clock))
    pace = StepTimer()
    with contextlib.ExitStack() as watching:
        books = watching.enter_context(_usage_shipper(attempt, pace, clock))
        title = f"{attempt.pipeline} · {attempt.stage}" if attempt.stage else directory.run_id
        view = watching.enter_context(
            Progress(title, config.steps, console, config.budget.currency, clock=clock)
        )
        utilisation = utilisation_of(config)
        observer = RunObserver(
            directory, tracker, view, lambda: books.spent, utilisation, pace.step_ended, clock
        )
        watching.enter_context(record_failure(sink, directory.run_id, clock))
        books.start(BudgetNotifier(observer, switch, config.budget.webhook))
        await asyncio.to_thread(books.wait_for_first_round, FIRST_ROUND_SECONDS)

        def on_lost(lost: WorkerLostError) -> None:
            observer.on_event(WorkerLost(lost.worker, lost.reason))

        view.message("starting the actors")
        parts = run_spec(config, directory.run_id, attempt.number, directory.path)
        async with contextlib.AsyncExitStack() as cluster:
            with switch.starting():
                stages = await cluster.enter_async_context(
                    cluster_stages(config.cluster, placement_of(config), parts, sink, clock, on_lost)
                )
            loop = _loop(attempt, stages, observer, clock)
            pace.step_began()
            with switch.connected(loop):
                # With a store the first attempt on this machine may be a later one of the run.
                await loop.run(resume=attempt.resumed or config.checkpoint.store is not None)


def _loop(attempt: Attempt, stages: ClusterStages, observer: RunObserver, clock: Clock) -> TrainingLoop:
    config, path = attempt.config, attempt.directory.path.resolve()
    recorder = TolerantRecorder(stages.rewards, observer, config.tracking.max_lost_records)
    evaluator = Evaluator(
        heldout_prompts(config, attempt.prompts),
        config.rollout.max_new_tokens,
        SampledAnswers(config.evaluation.samples, config.evaluation.temperature, config.evaluation.top_p),
        stages.rollouts,
        stages.rewards,
        recorder,
        attempt.directory.evaluations.resolve(),
    )
    wired = Stages(
        prompts=attempt.prompts,
        rollouts=stages.rollouts,
        rewards=stages.rewards,
        learner=stages.learner,
        evaluator=evaluator,
        recorder=recorder,
        checkpoints=Checkpointer(
            path / "checkpoints",
            config.checkpoint.keep,
            mirror_of(config, path.name),
            asynchronous=config.checkpoint.asynchronous,
            on_written=lambda step: observer.on_event(CheckpointWritten(step)),
        ),
        observer=observer,
    )
    buffer = Buffer(config.rollout.prompts_per_step, config.max_staleness)
    return TrainingLoop(loop_settings(config), wired, buffer, path, clock)


@contextlib.contextmanager
def record_failure(sink: UsageSink, run_id: str, clock: Clock) -> Generator[None]:
    """If the body fails, the run's purpose is `failed`: it leaves the headline until an attempt that goes on
    from here declares it anew. To be stopped by a budget or a signal is no failure.
    """
    try:
        yield
    except (BudgetStopError, DrainedError):
        raise
    except BaseException:
        try:
            sink.emit(PurposeSet(new_event_id(), clock.now_ns(), run_id, "failed"))
        except OSError as refused:  # a full disk may be why the run failed: that must be what is told
            logger.error("not told to the ledger: %s (orchestrator cost purpose %s failed)", refused, run_id)
        raise


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


@contextlib.contextmanager
def _usage_shipper(attempt: Attempt, pace: StepTimer, clock: Clock) -> Generator[UsageShipper]:
    config, run_id = attempt.config, attempt.directory.run_id
    spender = BudgetSubject(
        run_id=run_id,
        attempt=attempt.number,
        labels={
            "organisation": config.organisation,
            "cost_centre": config.cost_centre,
            "team": config.team,
            "project": config.project,
            "pipeline": attempt.pipeline,
            "purpose": config.purpose,
            "run": run_id,
        },
        accelerators=sum(slot.accelerators for slot in placement_of(config).slots),
        sku=config.cluster.sku,
    )
    prices = PriceBook.parse(config.price_book)
    budgets = RunBudgets(spender, config.budget, prices, pace, SHIP_EVERY_SECONDS, clock.now_ns)
    books = UsageShipper(
        lambda: Ledger.open(ledger_url(config), config.price_book),
        attempt.directory.ledger,
        run_id,
        SHIP_EVERY_SECONDS,
        budgets,
    )
    try:
        yield books
    finally:
        if not books.close():
            logger.error("usage events are not in the ledger yet; they stay in %s", attempt.directory.ledger)


class BudgetNotifier:
    """Carries what the bookkeeper says from its thread to the run's, and to a webhook."""

    def __init__(self, observer: RunObserver, switch: StopSwitch, webhook: str | None) -> None:
        self._observer, self._switch, self._webhook = observer, switch, webhook
        self._loop = asyncio.get_running_loop()

    def on_warning(self, warned: BudgetWarning) -> None:
        """Tell the people who watch the run, and the webhook."""
        logger.warning(warned.text)
        self._loop.call_soon_threadsafe(self._observer.on_budget_warning, warned.text)
        if self._webhook is not None:
            post_aside(self._webhook, warned.to_json())

    def on_refusal(self, reason: BudgetStopError) -> None:
        """Ask the loop for a checkpoint and an orderly end."""
        logger.warning("stopping: %s", reason)
        self._loop.call_soon_threadsafe(self._switch.ask, reason)

    def on_exhausted(self, reason: BudgetStopError) -> None:
        """End the step where it is."""
        logger.warning("breaking off: %s", reason)
        self._loop.call_soon_threadsafe(self._switch.cancel, reason)
