"""One simulated run: the real `TrainingLoop` with fake stages, and a trace of what happened."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.clock import Clock
from orchestrator.errors import OrchestratorError, WorkerLostError
from orchestrator.training.buffer import Buffer
from orchestrator.training.checkpoints.checkpointer import Checkpointer
from orchestrator.training.checkpoints.mirror import CheckpointMirror
from orchestrator.training.evaluation import SEED, Evaluator, SampledAnswers
from orchestrator.training.events import CheckpointWritten, TrainingEvent, WaitKind, WorkerLost, event_fields
from orchestrator.training.group_log import GroupRecord
from orchestrator.training.loop import LoopSettings, Stages, TrainingLoop
from orchestrator.training.recording import TolerantRecorder
from orchestrator.training.records import SamplingParams, StepReport
from orchestrator.training.rewards.pool import RewardPool, RewardWorker
from orchestrator.training.rollouts.pool import RolloutPool, RolloutWorker
from orchestrator.training.simulation.elastic import SimulatedSlots, StoppableWorker
from orchestrator.training.simulation.prompts import CountingPrompts
from orchestrator.training.simulation.side_by_side import HeavyTail, SideBySideWorker
from orchestrator.training.simulation.stages import (
    Draws,
    Faults,
    SimulatedLearner,
    SimulatedRewardWorker,
    SimulatedRolloutWorker,
    Timing,
)
from orchestrator.training.simulation.virtual_time import VirtualClock, run_in_virtual_time
from orchestrator.training.supervision.elastic import ElasticPool
from orchestrator.training.supervision.pool import Worker, WorkerPool
from orchestrator.training.usage import MemorySink, UsageSink
from orchestrator.training.waiting import Waits, WatchedLearner

W = TypeVar("W", bound=Worker)


@dataclass(frozen=True, slots=True)
class SimulationSettings:
    """The settings of a simulation: sizes, failure budgets, timing and faults."""

    seed: int
    steps: int
    max_staleness: int
    prompts_per_step: int = 16
    over_sampled: int = 0
    group_size: int = 4
    rollout_workers: int = 4
    elastic_workers: int = 0
    """Rollout workers in addition to these, which join as soon as there is a slot."""
    elastic_slots: int = 100
    load_seconds: float = 0.2
    """How long an elastic worker takes to load weights."""
    push: bool = False
    """Whether new weights are sent to all rollout workers at once."""
    reward_workers: int = 2
    rollouts_per_worker: int = 1
    """A rollout worker gets another request while it has fewer rollouts than this."""
    evaluate_every: int = 0
    checkpoint_every: int = 10
    dynamic_sampling: bool = False
    max_resampled: float = 4.0
    heldout_prompts: int = 16
    sampled_answers: int = 0
    keep_checkpoints: int = 2
    asynchronous_checkpoints: bool = True
    max_restarts: int = 1_000
    max_learner_rebuilds: int = 1_000
    max_data_losses: int = 1_000
    max_lost_records: int = 1_000
    call_timeout_seconds: float = 30.0
    tail: HeavyTail | None = None
    """If it is set, rollout workers sample groups side by side, and each group has a length of its own."""
    timing: Timing = field(default_factory=Timing)
    faults: Faults = field(default_factory=Faults)


@dataclass
class Trace:
    """An `Observer` that stores everything with virtual times."""

    clock: Clock
    reports: list[StepReport] = field(default_factory=list[StepReport])
    events: list[TrainingEvent] = field(default_factory=list[TrainingEvent])
    groups: list[GroupRecord] = field(default_factory=list[GroupRecord])
    lines: list[tuple[int, str, str]] = field(default_factory=list[tuple[int, str, str]])
    """(virtual time in ns, kind, particulars) of reports, events and recorded rollouts, in order."""

    def on_step(self, report: StepReport) -> None:
        self.reports.append(report)
        self.lines.append((self.clock.now_ns(), "step", f"{report.step} {sorted(report.metrics.items())}"))

    def on_event(self, event: TrainingEvent) -> None:
        self.events.append(event)
        self.lines.append((self.clock.now_ns(), event.kind, str(event_fields(event))))

    def on_groups(self, record: GroupRecord) -> None:
        self.groups.append(record)

    def on_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self.lines.append((self.clock.now_ns(), "rollouts", f"{step} {[row['group_id'] for row in rows]}"))


@dataclass
class Simulation:
    """A run that is ready to start. `loop` is the real training loop; tests inspect the
    other fields afterwards.
    """

    loop: TrainingLoop
    trace: Trace
    learner: SimulatedLearner
    buffer: Buffer
    rollouts: WorkerPool[RolloutWorker]
    rewards: WorkerPool[RewardWorker]
    elastic: ElasticPool[RolloutWorker]
    slots: SimulatedSlots

    async def close(self) -> None:
        """Stop everything that goes on beside the loop."""
        await self.elastic.close()
        await asyncio.gather(self.rollouts.close(), self.rewards.close())


def assemble(
    settings: SimulationSettings,
    directory: Path,
    clock: Clock,
    mirror: CheckpointMirror | None = None,
    observer: Trace | None = None,
    sink: UsageSink | None = None,
) -> Simulation:
    """Connect the real loop to fake stages. Checkpoints are written under `directory`, and `sink` receives
    the spans of all actors. Call it on a running event loop.
    """
    draws, timing, faults = Draws(settings.seed), settings.timing, settings.faults
    trace = observer or Trace(clock)
    waits = Waits(trace.on_event, clock)
    rollout_workers = _rollout_workers(settings, draws, clock, sink or MemorySink())
    reward_workers: list[RewardWorker] = [
        SimulatedRewardWorker(
            f"reward-{i}", draws, timing, faults, clock, settings.call_timeout_seconds, sink
        )
        for i in range(settings.reward_workers)
    ]
    rollouts = _pool(rollout_workers, settings, draws, trace, waits, settings.rollouts_per_worker)
    rewards = _pool(reward_workers, settings, draws, trace, waits, 1)
    learner = SimulatedLearner(draws, timing, faults, clock, sink=sink)
    prompts = CountingPrompts(settings.tail.epoch if settings.tail else None)
    buffer = Buffer(settings.prompts_per_step, settings.max_staleness, settings.over_sampled)
    rollout_stage = RolloutPool(rollouts, waits, push=settings.push)
    reward_stage = RewardPool(rewards, waits)
    slots, elastic = _elastic(settings, rollouts, rollout_stage, draws, trace, sink or MemorySink())
    heldout = prompts.heldout(settings.heldout_prompts)
    recorder = TolerantRecorder(reward_stage, trace, settings.max_lost_records)
    stages = Stages(
        prompts=prompts,
        rollouts=rollout_stage,
        rewards=reward_stage,
        learner=WatchedLearner(learner, waits),
        evaluator=Evaluator(
            heldout,
            SampledAnswers(settings.sampled_answers, _sampling(SEED)),
            rollout_stage,
            reward_stage,
            recorder,
            directory / "evaluations",
        ),
        recorder=recorder,
        checkpoints=Checkpointer(
            directory / "checkpoints",
            settings.keep_checkpoints,
            mirror,
            asynchronous=settings.asynchronous_checkpoints,
            on_written=lambda step: trace.on_event(CheckpointWritten(step)),
            waits=waits,
        ),
        observer=trace,
    )
    loop = TrainingLoop(_loop_settings(settings), stages, buffer, directory, clock)
    return Simulation(loop, trace, learner, buffer, rollouts, rewards, elastic, slots)


def _rollout_workers(
    settings: SimulationSettings, draws: Draws, clock: Clock, sink: UsageSink
) -> list[RolloutWorker]:
    names = [f"rollout-{index}" for index in range(settings.rollout_workers)]
    if (tail := settings.tail) is not None:
        return [SideBySideWorker(name, settings.seed, tail, clock, sink) for name in names]
    timing, faults = settings.timing, settings.faults
    return [SimulatedRolloutWorker(name, draws, timing, faults, clock, sink) for name in names]


@dataclass(frozen=True, slots=True)
class Stop:
    """A request to stop for `reason` at virtual second `at_seconds`."""

    at_seconds: float
    reason: OrchestratorError


def simulate(
    settings: SimulationSettings,
    directory: Path,
    *,
    resume: bool = False,
    stop: Stop | None = None,
    mirror: CheckpointMirror | None = None,
    observe: Callable[[Clock], Trace] = Trace,
    sink: UsageSink | None = None,
    meanwhile: Callable[[Simulation], Awaitable[None]] | None = None,
) -> Simulation:
    """Run to the end in virtual time, with `meanwhile` beside the loop. Raises the error that ended the run,
    or DeadlockError if it would hang.
    """

    async def main() -> Simulation:
        clock = VirtualClock()
        simulation = assemble(settings, directory, clock, mirror, observe(clock), sink)
        if stop is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(stop.at_seconds, simulation.loop.request_stop, stop.reason)
        beside = [asyncio.ensure_future(meanwhile(simulation))] if meanwhile is not None else []
        await simulation.loop.run(resume)
        await simulation.close()
        await asyncio.gather(*beside)
        return simulation

    return run_in_virtual_time(main())


def _pool(
    workers: list[W],
    settings: SimulationSettings,
    draws: Draws,
    trace: Trace,
    waits: Waits,
    capacity: int,
) -> WorkerPool[W]:
    async def replace(worker: W) -> W:
        with waits.on(WaitKind.START, worker.name):
            await asyncio.sleep(settings.timing.restart)
        if draws.uniform("restart_failure") < settings.faults.restart_failure:
            raise WorkerLostError(worker.name, "died while starting")
        return worker

    def on_lost(lost: WorkerLostError) -> None:
        trace.on_event(WorkerLost(lost.worker, lost.reason))

    return WorkerPool(workers, replace, settings.max_restarts, on_lost, capacity)


def _elastic(
    settings: SimulationSettings,
    pool: WorkerPool[RolloutWorker],
    stage: RolloutPool[RolloutWorker],
    draws: Draws,
    trace: Trace,
    sink: UsageSink,
) -> tuple[SimulatedSlots, ElasticPool[RolloutWorker]]:
    timing, faults, seconds = settings.timing, settings.faults, settings.load_seconds
    slots = SimulatedSlots(
        lambda name: StoppableWorker(name, draws, timing, faults, trace.clock, sink, seconds),
        pool,
        stage.catch_up,
        timing.restart,
        asyncio.Semaphore(settings.elastic_slots),
    )
    elastic = ElasticPool(pool, slots.hire, settings.max_restarts, trace.on_event, trace.clock)
    elastic.grow(settings.elastic_workers, "rollout.workers")
    return slots, elastic


def _sampling(seed: int) -> SamplingParams:
    return SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=8, seed=seed)


def _loop_settings(settings: SimulationSettings) -> LoopSettings:
    return LoopSettings(
        steps=settings.steps,
        group_size=settings.group_size,
        sampling=_sampling(settings.seed),
        evaluate_every=settings.evaluate_every,
        checkpoint_every=settings.checkpoint_every,
        record_every=10,
        sampled_rollouts=2,
        dynamic_sampling=settings.dynamic_sampling,
        max_resampled=settings.max_resampled,
        grading_failure_budget=0.0,
        max_learner_rebuilds=settings.max_learner_rebuilds,
        max_data_losses=settings.max_data_losses,
    )
