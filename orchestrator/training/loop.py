"""The loop: the only place where the stages meet.

    prompts --> rollouts --> rewards --> buffer --> learner --> weights --> rollouts ...
        producer: one task            |        trainer: one task
        follows every request         |        one batch a step

Who waits for whom:

- The *producer* waits for room in the buffer (back-pressure), takes prompts and sends a request to the
  rollout workers. Each request is followed by a task of its own: generate, then score, then admit its groups.
  A worker that finishes early is graded while others still sample.
- The *trainer* waits for the batch of its version, updates, publishes the new weights and releases the batch:
  that makes room.

With `max_staleness: 0` the buffer has room only after a publish, so the two alternate: synchronous training.
With k they overlap, k batches ahead at the most. There is no other mode.

A lost rollout or reward worker is replaced by its pool and never seen here; rollouts that went with their
node before they were graded are sampled again. A lost learner rank is seen, wherever it is noticed: the ranks
are rebuilt, the last checkpoint is restored, rollouts newer than it are dropped and counted, and training
goes on, within a budget. Everything else that is raised ends the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.clock import Clock
from orchestrator.errors import DataLostError, FailureBudgetExceededError, OrchestratorError, WorkerLostError
from orchestrator.training.buffer import Buffer, PendingGroup
from orchestrator.training.checkpoints.checkpointer import Checkpointer, LoopState
from orchestrator.training.evaluation import Evaluator
from orchestrator.training.records import Batch, SamplingParams, StepReport, TokenWork, WeightVersion
from orchestrator.training.stages import (
    Generated,
    LearnerStage,
    Observer,
    PromptSource,
    RewardStage,
    RolloutRequest,
    RolloutStage,
    Scored,
    Summary,
)
from orchestrator.training.timing import StepTimes


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """The few numbers the loop itself needs; everything else belongs to a stage."""

    steps: int
    seed: int
    group_size: int
    temperature: float
    top_p: float
    max_new_tokens: int
    evaluate_every: int
    """0: no evaluation."""
    checkpoint_every: int
    """0: only after the last step and when asked to stop."""
    record_every: int
    sampled_rollouts: int
    dynamic_sampling: bool
    max_resampled: float
    grading_failure_budget: float
    max_learner_rebuilds: int


@dataclass(frozen=True, slots=True)
class Stages:
    """What the loop drives. None of them knows the loop."""

    prompts: PromptSource
    rollouts: RolloutStage
    rewards: RewardStage
    learner: LearnerStage
    evaluator: Evaluator
    checkpoints: Checkpointer
    observer: Observer


class TrainingLoop:
    """Drives the stages from one weight version to the next. Use once: `await loop.run()`."""

    def __init__(
        self, settings: LoopSettings, stages: Stages, buffer: Buffer, directory: Path, clock: Clock
    ) -> None:
        self._settings, self._stages, self._buffer = settings, stages, buffer
        self._directory, self._clock = directory, clock
        self._step = 0
        self._next_group = 0
        self._backlog: list[PendingGroup] = []
        self._times = StepTimes(clock)
        self._summary: Summary | None = None
        self._resampled = 0
        self._rebuilds = 0
        self._stop_reason: OrchestratorError | None = None
        self._initial_state = LoopState(
            step=0, next_group=0, outstanding=(), prompts=dict(stages.prompts.state_dict())
        )

    def request_stop(self, reason: OrchestratorError) -> None:
        """End before the next step: checkpoint, then raise `reason` (DrainedError, BudgetStopError). Rollouts
        under way are given up; a resumed run asks for them again. Call it from the event loop's thread.
        """
        self._stop_reason = self._stop_reason or reason
        self._buffer.notify()

    async def run(self, resume: bool = False) -> StepReport:
        """Train to the last step and export the model; returns the last report. Raises the reason it was
        asked to stop for, or what ended the run. A checkpoint under way is waited for, except if the run is
        cancelled.
        """
        checkpoints = self._stages.checkpoints
        try:
            return await self._run(resume)
        except asyncio.CancelledError:
            checkpoints.abandon()
            raise
        finally:
            await checkpoints.close()

    async def _run(self, resume: bool) -> StepReport:
        lost: WorkerLostError | None = None
        while True:
            try:
                if lost is not None:
                    await self._stages.learner.rebuild()
                if lost is not None or resume:
                    await self._restore()
                report = await self._train()
                await self._stages.learner.export(self._directory / "model")
                await self._stages.checkpoints.flush()
                return report
            except WorkerLostError as error:
                lost = error
                self._tolerate(error)

    async def _train(self) -> StepReport:
        stages = self._stages
        await self._publish(self._step)
        report = await self._report_start()
        async with self._producing():
            while self._step < self._settings.steps:
                batch = await self._next_batch()
                updated = await stages.learner.update(batch)
                self._times.add(updated.spans)
                await self._publish(self._step + 1)
                evaluated = await self._evaluate(self._step + 1)
                self._step += 1
                self._buffer.release(batch)
                metrics = {**updated.report.metrics, **evaluated}
                report = self._report(batch, replace(updated.report, metrics=metrics))
                stages.observer.on_step(report)
                await self._record(batch)
                await self._checkpoint()
        return report

    # -- producer

    @contextlib.asynccontextmanager
    async def _producing(self) -> AsyncGenerator[None]:
        """The producer runs beside the trainer; the first error of either ends both and is raised."""
        try:
            async with asyncio.TaskGroup() as tasks:
                producer = tasks.create_task(self._produce(tasks))
                yield
                producer.cancel()
        except BaseExceptionGroup as group:
            raise _first_cause(group) from group

    async def _produce(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            with self._times.waiting("room"):
                room = await self._buffer.wait_for_room()
            groups = self._next_groups(min(room, self._groups_left(), self._buffer.groups_per_batch))
            if not groups:
                await self._buffer.wait_for_change()
                continue
            self._buffer.request(groups)
            for share in _split(groups, self._stages.rollouts.width):
                tasks.create_task(self._follow(self._to_request(share)))

    async def _follow(self, request: RolloutRequest) -> None:
        """One request from prompts to admitted groups."""
        generated, scored = await self._generate_and_score(request)
        self._times.add((*generated.spans, *scored.spans))
        self._summary = scored.summary if self._summary is None else self._summary + scored.summary
        for ticket in scored.tickets:
            if self._settings.dynamic_sampling and not ticket.informative:
                self._resampled += self._buffer.discard(ticket.group_id)
            else:
                self._buffer.admit(ticket)
        self._check_resampling_budget()

    async def _generate_and_score(self, request: RolloutRequest) -> tuple[Generated, Scored]:
        """Rollouts that are gone before they are graded are sampled again, once: a second loss is raised."""
        generated = await self._stages.rollouts.generate(request)
        try:
            return generated, await self._stages.rewards.score(generated)
        except DataLostError as lost:
            groups = [group_id for group_id, _ in request.groups]
            self._stages.observer.on_event("rollouts_lost", {"reason": lost.reason, "groups": groups})
        generated = await self._stages.rollouts.generate(request)
        return generated, await self._stages.rewards.score(generated)

    def _next_groups(self, count: int) -> list[PendingGroup]:
        """Groups that a restore found unfinished first, under their old ids, then new prompts."""
        again, self._backlog = self._backlog[: max(count, 0)], self._backlog[max(count, 0) :]
        groups = [PendingGroup(group.group_id, group.prompt, self._step) for group in again]
        for prompt in self._stages.prompts.take(max(count - len(groups), 0)):
            groups.append(PendingGroup(self._next_group, prompt, self._step))
            self._next_group += 1
        return groups

    def _groups_left(self) -> int:
        """Groups that the remaining steps need beyond those outstanding: nothing is sampled that no step will
        train on.
        """
        needed = (self._settings.steps - self._step) * self._buffer.groups_per_batch
        return needed - len(self._buffer.outstanding())

    def _to_request(self, groups: Sequence[PendingGroup]) -> RolloutRequest:
        settings = self._settings
        sampling = SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens,
            seed=request_seed(settings.seed, groups[0].group_id),
        )
        pairs = tuple((group.group_id, group.prompt) for group in groups)
        return RolloutRequest(pairs, self._step, self._step, settings.group_size, sampling)

    def _check_resampling_budget(self) -> None:
        budget = int(self._settings.max_resampled * self._buffer.groups_per_batch)
        if self._resampled > budget:
            raise FailureBudgetExceededError(
                "groups without a signal in one step",
                self._resampled,
                budget,
                "all rewards of a group were equal: the task is too easy or too hard",
            )

    # -- trainer

    async def _next_batch(self) -> Batch:
        """The batch of this step. A stop is obeyed before it and while its rollouts are waited for."""
        while True:
            await self._stop_if_asked()
            if self._buffer.ready(self._step):
                return self._buffer.claim(self._step)
            with self._times.waiting("batch"):
                await self._buffer.wait_for_change()

    async def _publish(self, version: WeightVersion) -> None:
        weights = await self._stages.learner.publish(version)
        self._times.add(weights.spans)
        self._stages.rollouts.use(weights)

    async def _evaluate(self, step: int) -> dict[str, float]:
        """Held-out metrics after `step` updates, where they are due: before the first step, after the last,
        and every so often.
        """
        every, last = self._settings.evaluate_every, self._settings.steps
        if every == 0 or (step % every and step != last):
            return {}
        evaluated = await self._stages.evaluator.evaluate(step)
        self._times.add(evaluated.spans)
        return evaluated.metrics

    async def _report_start(self) -> StepReport:
        self._times.begin()
        report = StepReport(self._step, await self._evaluate(0) if self._step == 0 else {})
        if report.metrics:
            self._stages.observer.on_step(report)
        return report

    def _report(self, batch: Batch, learned: StepReport) -> StepReport:
        """The step's metrics: the learner's, the evaluation's, sums over the rollouts that arrived since the
        last report, and where the time went.
        """
        arrived = self._summary.metrics() if self._summary else {}
        sampled = self._summary.work if self._summary else TokenWork()
        timing = self._times.take()
        staleness = [batch.step - ticket.oldest_version for ticket in batch.tickets]
        self._check_grading_budget(arrived)
        merged = {
            **arrived,
            **timing,
            **learned.metrics,
            "offpolicy/staleness_mean": sum(staleness) / len(staleness),
            "offpolicy/staleness_max": float(max(staleness)),
            "rollout/tokens_per_s": arrived.get("rollout/tokens", 0.0) / max(timing["time/step"], 1e-9),
            "rollout/resampled_groups": float(self._resampled),
            "rollout/refused_groups": float(self._buffer.refused),
        }
        self._summary, self._resampled = None, 0
        return StepReport(self._step, merged, learned.routing, learned.trained, sampled)

    def _check_grading_budget(self, arrived: Mapping[str, float]) -> None:
        failed, budget = arrived.get("reward/failed_fraction", 0.0), self._settings.grading_failure_budget
        if failed > budget:
            rollouts = round(arrived["rollout/count"])
            raise FailureBudgetExceededError(
                "rollouts that could not be graded in one step",
                round(failed * rollouts),
                int(budget * rollouts),
                "see the column `reason` of the step's rollouts",
            )

    async def _record(self, batch: Batch) -> None:
        if self._step % self._settings.record_every == 0 or self._step in (1, self._settings.steps):
            rows = await self._stages.rewards.record(
                self._step, batch.tickets, self._directory / "rollouts", self._settings.sampled_rollouts
            )
            self._stages.observer.on_rollouts(self._step, rows)

    # -- stopping, checkpoints, recovery

    async def _stop_if_asked(self) -> None:
        if self._stop_reason is not None:
            await self._checkpoint(now=True)
            await self._stages.checkpoints.flush()
            raise self._stop_reason

    async def _checkpoint(self, now: bool = False) -> None:
        """Write a checkpoint if one is due. Raises what went wrong with the one before."""
        self._stages.checkpoints.raise_if_failed()
        every, last = self._settings.checkpoint_every, self._settings.steps
        if not now and self._step != last and (every == 0 or self._step % every):
            return
        state = LoopState(
            step=self._step,
            next_group=self._next_group,
            outstanding=tuple(
                (group.group_id, group.prompt.prompt_id)
                for group in (*self._buffer.outstanding(), *self._backlog)
            ),
            prompts=dict(self._stages.prompts.state_dict()),
        )
        spans = await self._stages.checkpoints.save(self._stages.learner, state)
        self._times.add(spans)

    async def _restore(self) -> None:
        """Continue from the newest good checkpoint, or from the start if there is none yet."""
        self._buffer.clear()
        self._summary, self._resampled = None, 0
        self._times.forget()
        prompts = self._stages.prompts
        state = await self._stages.checkpoints.restore(self._stages.learner) or self._initial_state
        prompts.load_state_dict(state.prompts)
        self._step, self._next_group = state.step, state.next_group
        self._backlog = [
            PendingGroup(group_id, prompts.get(prompt_id), state.step)
            for group_id, prompt_id in state.outstanding
        ]
        self._stages.observer.on_event("restored", {"step": self._step})

    def _tolerate(self, lost: WorkerLostError) -> None:
        """Count a loss of the learner. Raises FailureBudgetExceededError if it is one too many."""
        self._rebuilds += 1
        dropped = len(self._buffer.outstanding())
        self._stages.observer.on_event(
            "learner_lost",
            {"worker": lost.worker, "reason": lost.reason, "step": self._step, "groups_dropped": dropped},
        )
        if self._rebuilds > self._settings.max_learner_rebuilds:
            raise FailureBudgetExceededError(
                "learner ranks lost", self._rebuilds, self._settings.max_learner_rebuilds, str(lost)
            ) from lost


def request_seed(seed: int, group_id: int) -> int:
    """The sampling seed of a request: a function of the run's seed and its first group, so that a retry or a
    resume repeats it.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}/{group_id}".encode(), digest_size=4).digest())


def _split(groups: Sequence[PendingGroup], shares: int) -> list[Sequence[PendingGroup]]:
    """At most `shares` contiguous parts whose sizes differ by one at the most; none is empty."""
    count = min(shares, len(groups))
    bounds = [len(groups) * share // count for share in range(count + 1)]
    return [groups[start:end] for start, end in itertools.pairwise(bounds)]


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error inside nested groups: the others are its echo (tasks cancelled because of it)."""
    cause: BaseException = group
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause
