"""One attempt at one training run: the training loop on a cluster, with its observers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from typing import Any

from orchestrator.capacity.utilisation import utilisation_of
from orchestrator.clock import Clock
from orchestrator.config.run_config import RunConfig
from orchestrator.errors import BudgetStopError, DrainedError
from orchestrator.launch.assembly import (
    buffer_of,
    heldout_prompts,
    learning_signal,
    loop_settings,
    mirror_of,
    run_spec,
    sampled_answers,
)
from orchestrator.launch.budgets import BudgetSubject, BudgetWarning, RunBudgets, StepTimer
from orchestrator.launch.final_report import ledger_url
from orchestrator.launch.observer import RunObserver
from orchestrator.launch.pool_requests import following_requests
from orchestrator.launch.prepared import PreparedStage
from orchestrator.launch.stop import StopSwitch
from orchestrator.launch.usage_shipper import UsageShipper
from orchestrator.launch.view import Views
from orchestrator.launch.webhook import post_aside
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.prices import PriceBook
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.lease import FencedError
from orchestrator.training.checkpoints.checkpointer import Checkpointer
from orchestrator.training.cluster.stages import ClusterStages, cluster_stages
from orchestrator.training.evaluation import Evaluator
from orchestrator.training.events import CheckpointWritten
from orchestrator.training.loop import Stages, TrainingLoop
from orchestrator.training.recording import TolerantRecorder
from orchestrator.training.supervision.elastic import ElasticPool
from orchestrator.training.telemetry.tracker import Tracker
from orchestrator.training.telemetry.training_health import TrainingHealth
from orchestrator.training.usage import PurposeSet, RunDeclared, SpoolSink, UsageSink, new_event_id
from orchestrator.training.waiting import Waits, WatchedLearner

logger = logging.getLogger(__name__)

SHIP_EVERY_SECONDS = 2.0

FIRST_ROUND_SECONDS = 10.0
"""How long a run waits for its budgets at the start. Then it continues as if there were no ledger."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a run: the first one, or one that continues from a checkpoint."""

    prepared: PreparedStage
    directory: RunDirectory
    number: int
    resumed: bool
    pipeline: str
    stage: str

    @property
    def config(self) -> RunConfig:
        """The config of the run."""
        return self.prepared.config


async def train(attempt: Attempt, tracker: Tracker, stop: StopSwitch, views: Views, clock: Clock) -> None:
    """Train to the end. Raises the error that stopped it. Leases are closed and
    usage is shipped in any case.
    """
    config, directory = attempt.config, attempt.directory
    sink = SpoolSink(directory.ledger / f"{attempt.number}-controller.jsonl")
    sink.emit(_declaration(attempt, clock))
    timer = StepTimer()
    with contextlib.ExitStack() as watching:
        shipper = watching.enter_context(_usage_shipper(attempt, timer, clock))
        title = f"{attempt.pipeline} · {attempt.stage}" if attempt.stage else directory.run_id
        view = watching.enter_context(views.open(title, config.steps, config.budget.currency))
        utilisation = utilisation_of(config)
        observer = RunObserver(
            directory,
            tracker,
            view,
            lambda: shipper.spent,
            utilisation,
            TrainingHealth(learning_signal(config), config.steps),
            timer.step_ended,
            clock,
        )
        watching.enter_context(record_failure(sink, directory.run_id, clock))
        shipper.start(BudgetNotifier(observer, stop, config.budget.webhook))

        waits = Waits(observer.on_event, clock)
        spec = run_spec(config, directory.run_id, attempt.number, directory.path)
        async with contextlib.AsyncExitStack() as cluster:
            with stop.starting():
                await asyncio.to_thread(shipper.wait_for_first_round, FIRST_ROUND_SECONDS)
                view.message("starting the actors")
                stages = await cluster.enter_async_context(
                    cluster_stages(
                        config.cluster,
                        attempt.prepared.placement,
                        spec,
                        sink,
                        clock,
                        observer.on_event,
                        waits,
                    )
                )
            await cluster.enter_async_context(_elastic(attempt, stages.elastic, observer, shipper))
            loop = _loop(attempt, stages, observer, waits, clock)
            timer.step_began()
            with stop.connected(loop):
                # With a store the first attempt on this machine may be a later one of the run.
                await loop.run(resume=attempt.resumed or config.checkpoint.store is not None)


@contextlib.asynccontextmanager
async def _elastic(
    attempt: Attempt, pool: ElasticPool[Any], observer: RunObserver, shipper: UsageShipper
) -> AsyncGenerator[None]:
    """While the body runs, act on requests for more or fewer rollout workers, and report what they do."""
    placement = attempt.prepared.placement
    permanent = sum(slot.accelerators for slot in placement.slots)

    def on_change() -> None:
        status = pool.status()
        holding = sum(each.holds_a_slot for each in status.workers)
        shipper.hold(permanent + holding * placement.elastic_slot.accelerators)
        observer.on_workers(status)

    pool.on_change = on_change
    on_change()
    async with following_requests(attempt.directory.requests, pool, observer.on_event):
        yield


def _loop(
    attempt: Attempt, stages: ClusterStages, observer: RunObserver, waits: Waits, clock: Clock
) -> TrainingLoop:
    config, path = attempt.config, attempt.directory.path.resolve()
    recorder = TolerantRecorder(stages.rewards, observer, config.tracking.max_lost_records)
    evaluator = Evaluator(
        heldout_prompts(config, attempt.prepared.prompts),
        sampled_answers(config),
        stages.rollouts,
        stages.rewards,
        recorder,
        attempt.directory.evaluations.resolve(),
    )
    wired = Stages(
        prompts=attempt.prepared.prompts,
        rollouts=stages.rollouts,
        rewards=stages.rewards,
        learner=WatchedLearner(stages.learner, waits),
        evaluator=evaluator,
        recorder=recorder,
        checkpoints=Checkpointer(
            path / "checkpoints",
            config.checkpoint.keep,
            mirror_of(config, path.name),
            asynchronous=config.checkpoint.asynchronous,
            on_written=lambda step: observer.on_event(CheckpointWritten(step)),
            check_writer=attempt.directory.check_writer,
            waits=waits,
        ),
        observer=observer,
    )
    return TrainingLoop(loop_settings(config), wired, buffer_of(config), path, clock)


@contextlib.contextmanager
def record_failure(sink: UsageSink, run_id: str, clock: Clock) -> Generator[None]:
    """If the body fails, set the run's purpose to `failed`, so that the headline cost does not count
    it until the next attempt declares its purpose again. Budget stops, signals and a lost lease do
    not count as failures.
    """
    try:
        yield
    except (BudgetStopError, DrainedError, FencedError):
        raise
    except BaseException:
        try:
            sink.emit(PurposeSet(new_event_id(), clock.now_ns(), run_id, "failed"))
        except OSError as refused:  # a full disk may be why the run failed: report that, not this
            logger.error(
                "the ledger does not know of the failure: %s (orchestrator cost purpose %s failed)",
                refused,
                run_id,
            )
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
def _usage_shipper(attempt: Attempt, timer: StepTimer, clock: Clock) -> Generator[UsageShipper]:
    config, run_id = attempt.config, attempt.directory.run_id
    subject = BudgetSubject(
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
        accelerators=sum(slot.accelerators for slot in attempt.prepared.placement.all_slots()),
        sku=config.cluster.sku,
    )
    prices = PriceBook.parse(config.price_book)
    budgets = RunBudgets(subject, config.budget, prices, timer, SHIP_EVERY_SECONDS, clock.now_ns)
    shipper = UsageShipper(
        lambda: Ledger.open(ledger_url(config), config.price_book),
        attempt.directory.ledger,
        run_id,
        SHIP_EVERY_SECONDS,
        budgets,
    )
    try:
        yield shipper
    finally:
        if not shipper.close():
            logger.error("usage events are not in the ledger yet; they stay in %s", attempt.directory.ledger)


class BudgetNotifier:
    """Reports the budgets' warnings and refusals from the usage shipper's thread."""

    def __init__(self, observer: RunObserver, stop: StopSwitch, webhook: str | None) -> None:
        self._observer, self._stop, self._webhook = observer, stop, webhook
        self._loop = asyncio.get_running_loop()

    def on_warning(self, warned: BudgetWarning) -> None:
        """Show the warning in the run's views and post it to the webhook."""
        logger.warning(warned.text)
        self._loop.call_soon_threadsafe(self._observer.on_budget_warning, warned.text)
        if self._webhook is not None:
            post_aside(self._webhook, warned.to_json())

    def on_refusal(self, reason: BudgetStopError) -> None:
        """Stop with a checkpoint."""
        logger.warning("stopping: %s", reason)
        self._stop.ask(reason)

    def on_exhausted(self, reason: BudgetStopError) -> None:
        """Stop in the middle of the step."""
        logger.warning("cancelling the step: %s", reason)
        self._stop.cancel(reason)
