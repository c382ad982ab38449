"""The seams of the loop: what it asks of each stage. Real stages are actors on a cluster, their twins live
in `simulation`.

Everything a stage returns is small: handles that only other stages open, and the spans of time that it used
(`Span`). Awaiting a stage raises the errors of `orchestrator.errors`; what a stage could repair by itself (a
lost rollout worker) never reaches the loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NewType, Protocol, Self

from orchestrator.training.events import TrainingEvent
from orchestrator.training.group_log import GroupRecord
from orchestrator.training.records import (
    Batch,
    BlockRef,
    GroupTicket,
    Prompt,
    RecordKind,
    SamplingParams,
    StepReport,
    TokenWork,
    WeightVersion,
)
from orchestrator.training.usage import Activity, Role

WeightRef = NewType("WeightRef", object)
"""An opaque handle of published weights: the weight channel's own, None in a simulation."""


@dataclass(frozen=True, slots=True)
class Span:
    """What an actor did from `start_ns` to `end_ns`: the usage event's twin, for the step's own timing.

    `role` is None where no actor but the controller did it.
    """

    activity: Activity
    start_ns: int
    end_ns: int
    role: Role | None = None
    actor: str = ""


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """Groups to sample: `groups` are (group id, prompt), requested while the learner was at `step`."""

    groups: tuple[tuple[int, Prompt], ...]
    step: int
    group_size: int
    sampling: SamplingParams
    activity: Activity = Activity.GENERATE

    @property
    def samples_heldout(self) -> bool:
        """Whether it asks for sampled answers to held-out prompts, not for the greedy ones."""
        return self.activity is Activity.EVALUATE and self.sampling.temperature > 0


@dataclass(frozen=True, slots=True)
class Generated:
    """A finished request: the handle of its `RolloutBlock`, and its size."""

    request: RolloutRequest
    block: BlockRef = field(repr=False)
    tokens: int
    spans: tuple[Span, ...]


class Summary(Protocol):
    """Sums over some rollouts, made next to the data, so that the controller only adds up a few numbers."""

    def __add__(self, other: Self, /) -> Self:
        """The sums over the rollouts of both."""
        ...

    def metrics(self) -> dict[str, float]:
        """`reward/*`, `accuracy/train` and `rollout/*`; `eval/*` of sampled held-out answers."""
        ...

    @property
    def failure(self) -> str:
        """A description of one of the rollouts that could not be scored: the reason in its first line, then
        the traceback and the response. Empty without any.
        """
        ...

    @property
    def work(self) -> TokenWork:
        """What the model read and predicted to sample the rollouts."""
        ...


@dataclass(frozen=True, slots=True)
class Scored:
    """A graded block: one ticket a group (they carry the handles) and the sums for the step's metrics."""

    tickets: tuple[GroupTicket, ...]
    summary: Summary
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Updated:
    """A finished learner step."""

    report: StepReport
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """Version `version` of the weights; `handle` is what a rollout worker pulls them with."""

    version: WeightVersion
    handle: WeightRef = field(repr=False)
    spans: tuple[Span, ...] = ()


class RolloutStage(Protocol):
    """Samples rollouts, with the newest weights it was told of."""

    @property
    def width(self) -> int:
        """How many requests it can work on at once."""
        ...

    def use(self, weights: PublishedWeights) -> None:
        """Requests that start from here on are sampled with these weights."""
        ...

    async def generate(self, request: RolloutRequest) -> Generated:
        """Run a request to its end. Raises DataLostError if the weights in use can't be read any more."""
        ...


class RewardStage(Protocol):
    """Grades rollouts and writes them to disk: it is where they are read."""

    async def score(self, generated: Generated) -> Scored:
        """Score every rollout of a block. Raises DataLostError if the block is gone."""
        ...

    async def record(
        self, step: int, tickets: Sequence[GroupTicket], directory: Path, kind: RecordKind, sample: int
    ) -> list[dict[str, Any]]:
        """Write the rollouts of these groups in full under `directory`; returns `sample` of them, to read.

        Raises StorageError if the disk refuses them, DataLostError if they are gone.
        """
        ...


class Savable(Protocol):
    """What a checkpoint is made of: the state of all learner ranks."""

    async def save(self, directory: Path, step: int) -> tuple[Span, ...]:
        """Write all ranks' state, after `step` steps, into `directory`. Raises CheckpointError or OSError if
        the disk refuses.
        """
        ...

    async def snapshot(self, step: int) -> tuple[Span, ...]:
        """Copy all ranks' state, after `step` steps, to memory: what `write` writes, whatever is
        trained in between.
        """
        ...

    async def write(self, directory: Path) -> None:
        """Like `save`, with the state of the last `snapshot`; other calls, but for `snapshot`,
        may run meanwhile.
        """
        ...

    async def load(self, directory: Path) -> None:
        """Continue from the state in `directory`. Raises CheckpointError if it does not fit."""
        ...


class LearnerStage(Savable, Protocol):
    """Updates the model: all ranks as one."""

    async def update(self, batch: Batch) -> Updated:
        """Train on the batch. Raises WorkerLostError if a rank died, NonFiniteError before a bad update is
        applied, and DataLostError if rollouts of the batch are gone: then no rank has changed, and each is
        ready for another batch.
        """
        ...

    async def publish(self, version: WeightVersion) -> PublishedWeights:
        """Make the current weights available as `version`: a newer one than the last, or the last one again
        if its weights were lost.
        """
        ...

    async def export(self, directory: Path) -> None:
        """Write the model as a Hugging Face folder."""
        ...

    async def rebuild(self) -> None:
        """Replace all ranks by fresh ones, with the weights that the run started from."""
        ...


class PromptSource(Protocol):
    """Where the next prompt comes from; resumable."""

    def take(self, count: int) -> Sequence[Prompt]:
        """The next `count` training prompts."""
        ...

    def heldout(self, count: int) -> Sequence[Prompt]:
        """The first `count` held-out prompts; never one that `take` returns."""
        ...

    def get(self, prompt_id: str) -> Prompt:
        """The prompt of that id."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """Its position, as JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a position."""
        ...


class Observer(Protocol):
    """Receives what happens: trackers, the progress view, a budget. Must not block. What it
    raises ends the run.
    """

    def on_step(self, report: StepReport) -> None:
        """A step (or the evaluation before the first) ended."""
        ...

    def on_event(self, event: TrainingEvent) -> None:
        """Something worth a line in events.jsonl: a lost worker, a checkpoint, a restore."""
        ...

    def on_groups(self, record: GroupRecord) -> None:
        """What became of some groups, for groups.jsonl."""
        ...

    def on_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Some rollouts of a step, to read."""
        ...
