"""The training loop, which connects all stages.

    prompts --> rollouts --> rewards --> buffer --> learner --> weights --> rollouts ...
        producer: one task            |        trainer: one task
        starts a task per request     |        one batch per step

Who waits for what:

- The *producer* waits for room in the buffer (back-pressure), takes prompts and sends requests to the rollout
  workers. Each request has its own task. Its groups arrive as they are completed, and are scored and
  admitted while others are still being sampled.
- The *trainer* waits for its batch, updates, publishes the new weights and releases the batch: room again.

With `max_staleness: 0` the buffer has room only after a publish, so the two alternate: synchronous training.
With k they overlap, at most k batches ahead. There is no other mode. With `rollout.over_sample_rate`, a batch
does not wait for its slowest groups: they are dropped when it is complete.

Which failures are repaired, and where:

- A lost rollout or reward worker is replaced by its pool; the loop does not notice.
- Lost rollouts (the node that held them died) go to the buffer's backlog and are requested again under their
  ids. Lost weights are published again by the trainer. Both count against `max_data_losses`.
- A lost learner rank can surface in any call to the learner: all ranks are rebuilt, the last checkpoint is
  restored, newer rollouts are dropped and counted, and training continues, at most
  `max_learner_rebuilds` times.
- Rollouts that cannot be recorded (a full disk) are counted by the `TolerantRecorder`.

Any other error ends the run.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.clock import Clock
from orchestrator.errors import DataLostError, FailureBudgetExceededError, OrchestratorError, WorkerLostError
from orchestrator.training import group_log
from orchestrator.training.buffer import Buffer, PendingGroup
from orchestrator.training.checkpoints.checkpointer import Checkpointer, LoopState
from orchestrator.training.data_losses import DataLosses
from orchestrator.training.dispatch import LengthAwareDispatch
from orchestrator.training.evaluation import Evaluator
from orchestrator.training.events import LearnerLost, Restored, ScoringFailed
from orchestrator.training.in_flight import RequestsInFlight
from orchestrator.training.recording import TolerantRecorder
from orchestrator.training.records import Batch, GroupTicket, SamplingParams, StepReport, WeightVersion
from orchestrator.training.stages import (
    Generated,
    LearnerStage,
    Observer,
    PromptSource,
    RewardStage,
    RolloutRequest,
    RolloutStage,
    Scored,
    Updated,
)
from orchestrator.training.supervision.failure_budget import FailureBudget
from orchestrator.training.tally import StepBudgets, StepTally


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """The settings that the loop itself needs; all others belong to a stage."""

    steps: int
    group_size: int
    sampling: SamplingParams
    evaluate_every: int
    """0 disables evaluation."""
    checkpoint_every: int
    """0: only after the last step and before a requested stop."""
    record_every: int
    sampled_rollouts: int
    dynamic_sampling: bool
    max_resampled: float
    grading_failure_budget: float
    max_learner_rebuilds: int
    max_data_losses: int


@dataclass(frozen=True, slots=True)
class Stages:
    """The components that the loop drives. None of them knows the loop."""

    prompts: PromptSource
    rollouts: RolloutStage
    rewards: RewardStage
    learner: LearnerStage
    evaluator: Evaluator
    recorder: TolerantRecorder
    checkpoints: Checkpointer
    observer: Observer


class TrainingLoop:
    """Drives the stages from one weight version to the next. An instance is used once: `await loop.run()`."""

    def __init__(
        self, settings: LoopSettings, stages: Stages, buffer: Buffer, directory: Path, clock: Clock
    ) -> None:
        self._settings, self._stages, self._buffer = settings, stages, buffer
        self._directory = directory
        self._step = 0
        self._next_group = 0
        resampled = int(settings.max_resampled * buffer.groups_per_batch)
        self._log = stages.observer.on_groups
        self._tally = StepTally(StepBudgets(resampled, settings.grading_failure_budget), clock)
        self._learner_losses = FailureBudget("learner ranks lost", settings.max_learner_rebuilds)
        self._losses = DataLosses(settings.max_data_losses, buffer, stages.observer)
        self._requests = RequestsInFlight(stages.rollouts, self._score, self._lose_weights)
        self._dispatch = LengthAwareDispatch()
        self._stop_reason: OrchestratorError | None = None
        self._initial_state = LoopState(
            step=0, next_group=0, outstanding=(), prompts=dict(stages.prompts.state_dict())
        )

    def request_stop(self, reason: OrchestratorError) -> None:
        """Stop before the next step: write a checkpoint, then raise `reason` (DrainedError,
        BudgetStopError). Rollouts in flight are abandoned; a resumed run requests them again. Must be
        called from the event loop's thread.
        """
        self._stop_reason = self._stop_reason or reason
        self._buffer.notify()

    async def run(self, resume: bool = False) -> StepReport:
        """Train to the last step, export the model and return the last report. Raises the reason of a
        requested stop, or the error that ended the run. A checkpoint that is being written is completed
        first, unless the run is cancelled.
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
                self._log(group_log.Finished(self._step))
                return report
            except WorkerLostError as error:
                lost = error
                dropped = len(self._buffer.outstanding())
                self._stages.observer.on_event(LearnerLost(error.worker, error.reason, self._step, dropped))
                self._learner_losses.spend(error)

    async def _train(self) -> StepReport:
        self._log(group_log.started(self._step, self._next_group, self._settings.steps, self._buffer))
        await self._publish(self._step)
        report = await self._report_start()
        async with self._producing():
            while self._step < self._settings.steps:
                batch, updated = await self._update()
                await self._publish(self._step + 1)
                evaluated = await self._evaluate(self._step + 1)
                self._step += 1
                self._buffer.release(batch)
                report = await self._report(batch, updated, evaluated)
                self._stages.observer.on_step(report)
                await self._record(batch)
                await self._checkpoint()
        return report

    # -- producer

    @contextlib.asynccontextmanager
    async def _producing(self) -> AsyncGenerator[None]:
        """Run the producer beside the trainer. The first error of either ends both and is raised."""
        try:
            async with asyncio.TaskGroup() as tasks:
                producer = tasks.create_task(self._produce(tasks))
                yield
                producer.cancel()
        except BaseExceptionGroup as group:
            raise _first_cause(group) from group

    async def _produce(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            with self._tally.times.waiting("room"):
                room = await self._buffer.wait_for_room()
            groups: list[PendingGroup] = []
            if not self._losses.weights_missing:  # otherwise wait until the trainer has published them again
                groups = self._next_groups(min(room, self._buffer.groups_per_batch))
            if not groups:
                await self._buffer.wait_for_change()
                continue
            for share in self._dispatch.split(groups, self._stages.rollouts.width):
                self._requests.start(tasks, self._to_request(share))

    def _next_groups(self, count: int) -> list[PendingGroup]:
        """Request up to `count` groups, first from the buffer's backlog, then with new prompts, but no more
        than the remaining steps will train on.
        """
        groups = self._buffer.request_again(count, self._step)
        needed = self._buffer.groups_for(self._settings.steps - self._step)
        fresh = min(count - len(groups), needed - len(self._buffer.outstanding()))
        new: list[PendingGroup] = []
        for prompt in self._stages.prompts.take(max(fresh, 0)):
            new.append(PendingGroup(self._next_group, prompt, self._step))
            self._next_group += 1
        self._buffer.request(new)
        if groups + new:
            self._log(group_log.requested(self._step, groups + new))
        return groups + new

    def _to_request(self, groups: Sequence[PendingGroup]) -> RolloutRequest:
        pairs = tuple((group.group_id, group.prompt) for group in groups)
        settings, expected = self._settings, self._dispatch.expected_tokens(groups)
        return RolloutRequest(
            pairs, self._step, settings.group_size, settings.sampling, expected_tokens=expected
        )

    def _lose_weights(self, lost: DataLostError, group_ids: Sequence[int]) -> None:
        self._losses.lose_weights(lost, self._step, group_ids)

    async def _score(self, generated: Generated) -> None:
        """Score groups and admit them to the buffer."""
        try:
            scored = await self._stages.rewards.score(generated)
        except DataLostError as lost:
            self._losses.lose_rollouts(lost, [group_id for group_id, _ in generated.request.groups])
            return
        self._tally.times.add((*generated.spans, *scored.spans))
        self._dispatch.note(scored.tickets)
        if failure := self._tally.arrived(scored):
            self._stages.observer.on_event(ScoringFailed(self._step + 1, failure))
        await self._admit(scored, generated.request.step)

    async def _admit(self, scored: Scored, version: WeightVersion) -> None:
        fates: dict[group_log.Fate, list[GroupTicket]] = {fate: [] for fate in group_log.FATES}
        for ticket in scored.tickets:
            signal = ticket.informative or not self._settings.dynamic_sampling
            if signal or self._tally.trains_on_solved_groups:
                fates["ready" if self._buffer.admit(ticket) else "refused"].append(ticket)
            else:
                taken = self._buffer.discard(ticket.group_id)
                fates["uninformative" if taken else "refused"].append(ticket)
        for fate, tickets in fates.items():
            if tickets:
                self._log(group_log.arrived(fate, version, tickets))
        discarded = fates["uninformative"]
        try:
            self._tally.resampled(discarded)
        except FailureBudgetExceededError:
            await self._write_record(self._step + 1, discarded)  # the rollouts that made the run fail
            raise

    # -- trainer

    async def _update(self) -> tuple[Batch, Updated]:
        """Train on the next batch. Rollouts that were lost before the learner
        received them are sampled again.
        """
        while True:
            batch = await self._next_batch()
            try:
                updated = await self._stages.learner.update(batch)
            except DataLostError as lost:
                self._losses.lose_rollouts(lost, [ticket.group_id for ticket in batch.tickets])
            else:
                self._tally.times.add(updated.spans)
                self._log(group_log.trained(batch))
                return batch, updated

    async def _next_batch(self) -> Batch:
        """Wait for the batch of this step. Meanwhile, handle a requested stop
        and publish lost weights again.
        """
        while True:
            await self._stop_if_asked()
            if self._losses.weights_missing:
                await self._publish(self._step)
            if self._buffer.ready(self._step):
                batch = self._buffer.claim(self._step, is_last=self._step + 1 == self._settings.steps)
                if batch.dropped:
                    self._requests.drop(batch.dropped)
                    self._log(group_log.Dropped(self._step, batch.dropped))
                return batch
            with self._tally.times.waiting("batch"):
                await self._buffer.wait_for_change()

    async def _publish(self, version: WeightVersion) -> None:
        weights = await self._stages.learner.publish(version)
        self._tally.times.add(weights.spans)
        self._stages.rollouts.use(weights)
        self._losses.weights_missing = False
        self._buffer.notify()

    async def _evaluate(self, step: int) -> dict[str, float]:
        """Compute held-out metrics after `step` updates if they are due: before the first step, after the
        last, and at every multiple of `evaluate_every`. An evaluation that lost its answers or the weights is
        repeated after publishing the weights again.
        """
        every, last = self._settings.evaluate_every, self._settings.steps
        if every == 0 or (step % every and step != last):
            return {}
        while True:
            try:
                evaluated = await self._stages.evaluator.evaluate(step)
            except DataLostError as lost:
                self._losses.lose_answers(lost, step)
                await self._publish(step)
            else:
                self._tally.times.add(evaluated.spans)
                self._log(group_log.Evaluated(step, evaluated.groups, evaluated.tokens))
                return evaluated.metrics

    async def _report_start(self) -> StepReport:
        self._tally.times.begin()
        report = StepReport(self._step, await self._evaluate(0) if self._step == 0 else {})
        if report.metrics:
            self._stages.observer.on_step(report)
        return report

    async def _report(self, batch: Batch, updated: Updated, evaluated: dict[str, float]) -> StepReport:
        try:
            return self._tally.report(batch, updated, evaluated, self._buffer.refused)
        except FailureBudgetExceededError:
            await self._write_record(self._step, batch.tickets)  # the rollouts that made the run fail
            raise

    async def _record(self, batch: Batch) -> None:
        if self._step % self._settings.record_every == 0 or self._step in (1, self._settings.steps):
            await self._write_record(self._step, batch.tickets)

    async def _write_record(self, step: int, tickets: Sequence[GroupTicket]) -> None:
        rows = await self._stages.recorder.record(
            step, tickets, self._directory / "rollouts", "step", self._settings.sampled_rollouts
        )
        self._stages.observer.on_rollouts(step, rows)

    # -- stopping, checkpoints, recovery

    async def _stop_if_asked(self) -> None:
        if self._stop_reason is not None:
            await self._checkpoint(now=True)
            await self._stages.checkpoints.flush()
            raise self._stop_reason

    async def _checkpoint(self, now: bool = False) -> None:
        """Write a checkpoint if one is due. Raises the error of the previous one if it failed."""
        self._stages.checkpoints.raise_if_failed()
        every, last = self._settings.checkpoint_every, self._settings.steps
        if not now and self._step != last and (every == 0 or self._step % every):
            return
        state = LoopState(
            step=self._step,
            next_group=self._next_group,
            outstanding=tuple(
                (group.group_id, group.prompt.prompt_id) for group in self._buffer.outstanding()
            ),
            prompts=dict(self._stages.prompts.state_dict()),
        )
        spans = await self._stages.checkpoints.save(self._stages.learner, state)
        self._tally.times.add(spans)

    async def _restore(self) -> None:
        """Continue from the newest valid checkpoint, or from the start if there is none."""
        self._tally.forget()
        self._losses.weights_missing = False
        prompts = self._stages.prompts
        state = await self._stages.checkpoints.restore(self._stages.learner) or self._initial_state
        prompts.load_state_dict(state.prompts)
        self._step, self._next_group = state.step, state.next_group
        self._buffer.restore(
            PendingGroup(group_id, prompts.get(prompt_id), state.step)
            for group_id, prompt_id in state.outstanding
        )
        self._stages.observer.on_event(Restored(self._step))


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error inside nested groups. The others are its consequences."""
    cause: BaseException = group
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause
