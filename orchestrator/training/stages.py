"""Interfaces between the loop and its stages. Real stages are actors on a cluster; `simulation` has fakes.

Everything that a stage returns is small: handles that only other stages open, and spans of time (`Span`).
Awaiting a stage raises the errors of `orchestrator.errors`. Failures that a stage can repair by itself (a
lost rollout worker) never reach the loop.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
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
    """What an actor did from `start_ns` to `end_ns`: the same data as in the usage
    event, for the timing of a step.

    `role` is None if the controller did it rather than an actor.
    """

    activity: Activity
    start_ns: int
    end_ns: int
    role: Role | None = None
    actor: str = ""


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """A request to sample groups: `groups` are (group id, prompt), requested
    while the learner was at `step`.
    """

    groups: tuple[tuple[int, Prompt], ...]
    step: int
    group_size: int
    sampling: SamplingParams
    activity: Activity = Activity.GENERATE
    expected_tokens: Mapping[int, int] = field(default_factory=dict[int, int])
    """How many tokens each group will probably have, by its id; empty if that is unknown."""

    @property
    def samples_heldout(self) -> bool:
        """Whether it requests sampled rather than greedy answers to held-out prompts."""
        return self.activity is Activity.EVALUATE and self.sampling.temperature > 0


@dataclass(frozen=True, slots=True)
class Generated:
    """Complete groups of a request: the handle of their `RolloutBlock`, and the number of their tokens.
    `request` names only these groups, in the block's order.
    """

    request: RolloutRequest
    block: BlockRef = field(repr=False)
    tokens: int
    spans: tuple[Span, ...]


class Summary(Protocol):
    """Sums over rollouts, computed next to the data, so that the controller only adds up a few numbers."""

    def __add__(self, other: Self, /) -> Self:
        """The sums over the rollouts of both."""
        ...

    def metrics(self) -> dict[str, float]:
        """The metrics `reward/*`, `accuracy/train` and `rollout/*`; `eval/*` for sampled held-out answers."""
        ...

    @property
    def failure(self) -> str:
        """A description of one of the rollouts that could not be scored: the reason in its first line, then
        the traceback and the response. Empty without failures.
        """
        ...

    @property
    def work(self) -> TokenWork:
        """What the model read and predicted to sample the rollouts."""
        ...


@dataclass(frozen=True, slots=True)
class Scored:
    """A scored block: one ticket per group (with the handles) and the sums for the metrics of the step."""

    tickets: tuple[GroupTicket, ...]
    summary: Summary
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Updated:
    """The result of a learner step."""

    report: StepReport
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """Version `version` of the weights; rollout workers pull them with `handle`."""

    version: WeightVersion
    handle: WeightRef = field(repr=False)
    spans: tuple[Span, ...] = ()
    sequence: int = 0
    """Increases whenever weights are passed to the rollout workers. The version may not: a restored learner
    publishes an older version, or the same one with other weights.
    """


class RolloutStage(Protocol):
    """Samples rollouts with the most recent weights passed to `use`."""

    @property
    def width(self) -> int:
        """Number of requests that it can work on at once."""
        ...

    def use(self, weights: PublishedWeights) -> None:
        """Use these weights for all requests that start from now on. With `rollout.on_new_weights` other than
        `finish`, running rollouts switch to them too.
        """
        ...

    def generate(self, request: RolloutRequest) -> AsyncGenerator[Generated]:
        """Run a request, and yield its groups as they are completed, each exactly once. If the generator is
        closed early, the remaining groups are dropped. Raises DataLostError if the weights in use can no
        longer be read.
        """
        ...


class RewardStage(Protocol):
    """Scores rollouts and writes them to disk, because the reward workers hold them."""

    async def score(self, generated: Generated) -> Scored:
        """Score every rollout of a block. Raises DataLostError if the block is lost."""
        ...

    async def record(
        self, step: int, tickets: Sequence[GroupTicket], directory: Path, kind: RecordKind, sample: int
    ) -> list[dict[str, Any]]:
        """Write the rollouts of these groups in full under `directory`. Returns `sample` of them.

        Raises StorageError if the disk rejects them, DataLostError if they are lost.
        """
        ...


class Savable(Protocol):
    """The contents of a checkpoint: the state of all learner ranks."""

    async def save(self, directory: Path, step: int) -> tuple[Span, ...]:
        """Write the state of all ranks, after `step` steps, into `directory`. Raises CheckpointError, or
        OSError if the disk rejects it.
        """
        ...

    async def snapshot(self, step: int) -> tuple[Span, ...]:
        """Copy the state of all ranks, after `step` steps, to memory for
        `write`, regardless of later updates.
        """
        ...

    async def write(self, directory: Path) -> None:
        """Like `save`, with the state of the last `snapshot`. Calls other than
        `snapshot` may run at the same time.
        """
        ...

    async def load(self, directory: Path) -> None:
        """Continue from the state in `directory`. Raises CheckpointError if it does not fit."""
        ...


class LearnerStage(Savable, Protocol):
    """Updates the model. All ranks act as one."""

    async def update(self, batch: Batch) -> Updated:
        """Train on the batch. Raises WorkerLostError if a rank died, NonFiniteError before a bad update is
        applied, and DataLostError if rollouts of the batch are lost; in the last case no rank has changed,
        and all are ready for another batch.
        """
        ...

    async def publish(self, version: WeightVersion) -> PublishedWeights:
        """Make the current weights available as `version`, which is newer than the last one, or the last one
        again if its weights were lost.
        """
        ...

    async def export(self, directory: Path) -> None:
        """Write the model as a Hugging Face folder."""
        ...

    async def rebuild(self) -> None:
        """Replace all ranks by new ones, with the initial weights of the run."""
        ...


class PromptSource(Protocol):
    """Yields prompts in a reproducible order. Its position can be saved and restored."""

    def take(self, count: int) -> Sequence[Prompt]:
        """Return the next `count` training prompts."""
        ...

    def heldout(self, count: int) -> Sequence[Prompt]:
        """Return the first `count` held-out prompts. `take` never returns them."""
        ...

    def get(self, prompt_id: str) -> Prompt: ...

    def state_dict(self) -> Mapping[str, Any]:
        """The position as JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved position."""
        ...


class Observer(Protocol):
    """Receives reports and events, for trackers, the progress view and budgets. Must not
    block. Its exceptions end the run.
    """

    def on_step(self, report: StepReport) -> None:
        """Called after each step and after the evaluation before the first step."""
        ...

    def on_event(self, event: TrainingEvent) -> None:
        """Called for everything that is recorded in events.jsonl: a lost worker, a checkpoint, a restore."""
        ...

    def on_groups(self, record: GroupRecord) -> None:
        """What became of some groups, for groups.jsonl."""
        ...

    def on_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Called with a sample of a step's rollouts for people to read."""
        ...
