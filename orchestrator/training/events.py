"""Everything that can happen in a run besides an ordinary step: one small record for each kind of event.

An `Observer` receives them. `kind` names the event in `events.jsonl`, whose other columns are the fields of
the record. `message` is a sentence for the terminal; it is empty for events that only programs need.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, ClassVar

from orchestrator.clock import NANOSECONDS


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A rollout or reward worker died or stopped responding. Its pool replaces it."""

    kind: ClassVar[str] = "worker_lost"
    worker: str
    reason: str

    @property
    def message(self) -> str:
        return f"{self.worker} was lost and is being replaced: {self.reason}"


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A rollout worker joined the pool while the run was going on; with it there are `workers`."""

    kind: ClassVar[str] = "worker_joined"
    worker: str
    reason: str
    workers: int

    @property
    def message(self) -> str:
        return f"{self.worker} joined, there are {self.workers} rollout workers now: {self.reason}"


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    """A rollout worker left the pool, or no longer tries to join it; without it there are `workers`."""

    kind: ClassVar[str] = "worker_left"
    worker: str
    reason: str
    workers: int
    abandoned: bool
    """Whether it left before its requests were complete. Their groups are sampled again."""

    @property
    def message(self) -> str:
        return f"{self.worker} left, there are {self.workers} rollout workers now: {self.reason}"


@dataclass(frozen=True, slots=True)
class PoolRequested:
    """`orchestrator workers` asked for `change` more rollout workers (fewer, if it is negative)."""

    kind: ClassVar[str] = "pool_requested"
    request: str
    change: int
    wanted: int
    """The number of rollout workers that the run wants now."""
    refused: str
    """Why the request was refused; empty if it was accepted."""

    @property
    def message(self) -> str:
        if self.refused:
            return f"a request to change the number of rollout workers was refused: {self.refused}"
        change = f"{self.change} more" if self.change > 0 else f"{-self.change} fewer"
        return f"{change} rollout workers were requested; the run wants {self.wanted} now"


@dataclass(frozen=True, slots=True)
class LearnerLost:
    """A learner rank died during `step`. All ranks are rebuilt and restored from the last checkpoint; the
    `groups_dropped` groups that were in flight or ready are sampled again.
    """

    kind: ClassVar[str] = "learner_lost"
    worker: str
    reason: str
    step: int
    groups_dropped: int

    @property
    def message(self) -> str:
        return f"{self.worker} was lost after step {self.step}; rebuilding the learner: {self.reason}"


class WaitKind(StrEnum):
    """What a run can wait for."""

    SLOTS = "slots"
    START = "start"
    GENERATE = "generate"
    EVALUATE = "evaluate"
    SCORE = "score"
    RECORD = "record"
    UPDATE = "update"
    PUBLISH = "publish"
    CHECKPOINT = "checkpoint"
    RESTORE = "restore"
    EXPORT = "export"


_WAITS = {
    WaitKind.SLOTS: "slots of {}",
    WaitKind.START: "{} to start",
    WaitKind.GENERATE: "{} to sample rollouts",
    WaitKind.EVALUATE: "{} to answer held-out prompts",
    WaitKind.SCORE: "{} to compute rewards",
    WaitKind.RECORD: "{} to write rollouts to disk",
    WaitKind.UPDATE: "{} to finish its update",
    WaitKind.PUBLISH: "{} to publish its weights",
    WaitKind.CHECKPOINT: "{} to write a checkpoint to disk",
    WaitKind.RESTORE: "{} to load a checkpoint",
    WaitKind.EXPORT: "{} to write the final model to disk",
}


@dataclass(frozen=True, slots=True)
class Waiting:
    """The run waits for `where` to do `what`, longer than usual or for something that is missing."""

    kind: ClassVar[str] = "waiting"
    what: WaitKind
    where: str
    """A worker, `the learner` or `the cluster`."""
    since_ns: int
    usual_seconds: float | None
    """The median of the last waits of this kind; None if there is none."""
    reason: str
    """Particulars; empty if there are none."""

    @property
    def message(self) -> str:
        since = datetime.fromtimestamp(self.since_ns // NANOSECONDS, UTC)
        usual = "" if self.usual_seconds is None else f" (usually {self.usual_seconds:.2g} s)"
        reason = f": {self.reason}" if self.reason else ""
        return f"waiting for {_WAITS[self.what].format(self.where)} since {since:%H:%M:%S} UTC{usual}{reason}"


@dataclass(frozen=True, slots=True)
class WaitEnded:
    """A wait that was reported is over, whether or not it brought what was waited for."""

    kind: ClassVar[str] = "wait_ended"
    what: WaitKind
    where: str
    seconds: float

    @property
    def message(self) -> str:
        return f"no longer waiting for {_WAITS[self.what].format(self.where)}, after {self.seconds:.0f} s"


@dataclass(frozen=True, slots=True)
class RolloutsLost:
    """The rollouts of these groups were lost with the process or node that held them. They are
    sampled again under the same ids.
    """

    kind: ClassVar[str] = "rollouts_lost"
    reason: str
    groups: tuple[int, ...]

    @property
    def message(self) -> str:
        return f"the rollouts of {len(self.groups)} groups were lost and are sampled again: {self.reason}"


@dataclass(frozen=True, slots=True)
class WeightsLost:
    """The published weights of `version` can no longer be read. The learner publishes them again."""

    kind: ClassVar[str] = "weights_lost"
    reason: str
    version: int

    @property
    def message(self) -> str:
        return f"the published weights of version {self.version} were lost: {self.reason}"


@dataclass(frozen=True, slots=True)
class AnswersLost:
    """An evaluation lost answers, or the weights to sample them with. It is repeated."""

    kind: ClassVar[str] = "answers_lost"
    step: int
    reason: str

    @property
    def message(self) -> str:
        return f"the evaluation after step {self.step} is repeated, its answers were lost: {self.reason}"


@dataclass(frozen=True, slots=True)
class RecordLost:
    """The rollouts of `step` could not be written to disk. Training continues without this record."""

    kind: ClassVar[str] = "record_lost"
    step: int
    record: str
    """`step` for the rollouts of a learner step, `heldout` for the answers of an evaluation."""
    reason: str

    @property
    def message(self) -> str:
        return f"the rollouts of step {self.step} were not recorded: {self.reason}"


@dataclass(frozen=True, slots=True)
class Restored:
    """The run continues from the checkpoint after `step`, or from its beginning if `step` is 0."""

    kind: ClassVar[str] = "restored"
    step: int

    @property
    def message(self) -> str:
        return f"continuing after step {self.step}" if self.step else "starting again from the beginning"


@dataclass(frozen=True, slots=True)
class CheckpointWritten:
    """The checkpoint after `step` is complete on disk."""

    kind: ClassVar[str] = "checkpoint"
    step: int

    @property
    def message(self) -> str:
        """Checkpoints are not announced on the terminal."""
        return ""


@dataclass(frozen=True, slots=True)
class ScoringFailed:
    """A rollout of `step` could not be scored. Reported once for each reason."""

    kind: ClassVar[str] = "scoring_failed"
    step: int
    description: str
    """The reason in the first line, then the traceback and the response."""

    @property
    def message(self) -> str:
        return f"a rollout could not be scored: {self.description}"


@dataclass(frozen=True, slots=True)
class TrainingWarning:
    """The run probably does not learn; `check` says what to look at. See `telemetry.training_health`."""

    kind: ClassVar[str] = "training_warning"
    step: int
    problem: str
    """A stable name for programs: `equal_rewards`, `no_answers`, ..."""
    what: str
    check: str

    @property
    def message(self) -> str:
        return f"{self.what} {self.check}"


@dataclass(frozen=True, slots=True)
class TrackingUnavailable:
    """The tracking server cannot be reached or rejects the run. metrics.jsonl contains all metrics; the
    missing ones are sent when the server responds again, or when the run is resumed.
    """

    kind: ClassVar[str] = "tracking_unavailable"
    reason: str

    @property
    def message(self) -> str:
        return f"tracking is unavailable, metrics are kept in metrics.jsonl: {self.reason}"


TrainingEvent = (
    WorkerLost
    | WorkerJoined
    | WorkerLeft
    | PoolRequested
    | LearnerLost
    | Waiting
    | WaitEnded
    | RolloutsLost
    | WeightsLost
    | AnswersLost
    | RecordLost
    | Restored
    | CheckpointWritten
    | ScoringFailed
    | TrainingWarning
    | TrackingUnavailable
)


def event_fields(event: TrainingEvent) -> dict[str, Any]:
    """The fields of the event as plain JSON.

    >>> event_fields(RolloutsLost("node 3 died", (7, 9)))
    {'reason': 'node 3 died', 'groups': [7, 9]}
    """
    fields = dataclasses.asdict(event)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
