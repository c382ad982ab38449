"""Fake workers with the timing and the faults of real ones, but without tokens or a model.

Every duration and every fault is drawn from its own generator, seeded by (seed, kind, name, count), so that
an additional fault does not change all the others.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from orchestrator.clock import Clock
from orchestrator.errors import CheckpointError, DataLostError, NonFiniteError, StorageError, WorkerLostError
from orchestrator.training.records import (
    Batch,
    BlockRef,
    GroupTicket,
    RecordKind,
    ScoreRef,
    StepReport,
    TokenWork,
    WeightVersion,
)
from orchestrator.training.stages import (
    Generated,
    PublishedWeights,
    RolloutRequest,
    Scored,
    Span,
    Updated,
    WeightRef,
)
from orchestrator.training.telemetry.sampled_answers import prompt_values
from orchestrator.training.telemetry.summary import Mean, merged
from orchestrator.training.usage import Activity, Role, SpanRecorded, UsageSink, new_event_id
from orchestrator.training.usage_meter import UsageMeter

TRAINED = "trained.txt"
"""The file in which a simulated model is saved."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities of faults, for each call. A hang lasts `hang_seconds`."""

    rollout_death: float = 0.0
    answer_lost: float = 0.0
    """A rollout worker dies when it has sampled, before its answer arrives."""
    reward_hang: float = 0.0
    late_publish: float = 0.0
    learner_death: float = 0.0
    """The learner dies during an update."""
    learner_death_elsewhere: float = 0.0
    """The learner dies while it publishes, saves, loads, exports or is rebuilt."""
    restart_failure: float = 0.0
    """The replacement of a lost worker is lost before it is ready."""
    rollouts_lost: float = 0.0
    """A block is lost with its node before it is scored."""
    batch_lost: float = 0.0
    """A block is lost with its node before the learner has read it."""
    weights_lost: float = 0.0
    """A rollout worker cannot read the published weights although the learner is healthy."""
    disk_full: float = 0.0
    """The rollouts of a step cannot be written to disk."""
    non_finite_step: int | None = None
    """The update of this step is NaN."""
    hang_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Timing:
    """Mean virtual seconds of one call. Generation takes between half and three times its mean, because
    staleness is meant for long tails.
    """

    generate: float = 1.0
    score: float = 0.1
    update: float = 0.8
    publish: float = 0.05
    write: float = 1.5
    """Time to write a snapshot to disk."""
    restart: float = 5.0
    tokens_per_rollout: int = 10
    portions: int = 1
    """In how many portions a worker returns the groups of a request, as far as it has that many groups."""


class Draws:
    """Seeded random numbers that do not depend on the order of calls: the n-th draw of a
    name is always the same.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._counts: dict[str, int] = {}

    def uniform(self, name: str) -> float:
        """The next number in [0, 1) for `name`."""
        count = self._counts.get(name, 0)
        self._counts[name] = count + 1
        digest = hashlib.blake2b(f"{self._seed}/{name}/{count}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) / 2**64


@dataclass(frozen=True, slots=True)
class CountingSummary:
    """A fake `Summary` that counts rollouts and has a fixed reward."""

    rollouts: int
    tokens: int
    sampled: Mapping[str, Mean] = field(default_factory=dict[str, Mean])
    """pass@k and maj@k of sampled held-out answers."""
    failure: str = ""

    def __add__(self, other: Self, /) -> CountingSummary:
        return CountingSummary(
            self.rollouts + other.rollouts, self.tokens + other.tokens, merged(self.sampled, other.sampled)
        )

    @property
    def work(self) -> TokenWork:
        """The work if every token were read once and attended only to itself."""
        return TokenWork(self.tokens, self.tokens, self.tokens)

    def metrics(self) -> dict[str, float]:
        """The metrics that the loop and the evaluation use."""
        return {
            "rollout/count": float(self.rollouts),
            "rollout/tokens": float(self.tokens),
            "rollout/length_mean": self.tokens / self.rollouts,
            "rollout/reflection_fraction": 0.0,
            "rollout/truncated_fraction": 0.0,
            "reward/mean": 0.5,
            "reward/failed_fraction": 0.0,
            "accuracy/train": 0.5,
            **{f"eval/{name}": mean.value for name, mean in self.sampled.items()},
        }


@dataclass(frozen=True, slots=True)
class SimulatedBlock:
    """Represents a `RolloutBlock` whose tokens were all sampled with one version of the weights."""

    version: WeightVersion
    group_tokens: int | None = None
    """Tokens of each group; None: as many as `Timing` says."""


class SimulatedRolloutWorker:
    """Sleeps for the time that sampling takes, and sometimes dies while sampling."""

    def __init__(
        self, name: str, draws: Draws, timing: Timing, faults: Faults, clock: Clock, sink: UsageSink
    ) -> None:
        self.name = name
        self._draws, self._timing, self._faults = draws, timing, faults
        self._meter = UsageMeter(sink, clock, [f"{name}-lease"], name, Role.ROLLOUT)

    async def generate(self, request: RolloutRequest, weights: PublishedWeights) -> AsyncGenerator[Generated]:
        """Yield the groups in portions of the same duration. Every rollout gets `Timing.tokens_per_rollout`
        tokens of version `weights.version`.
        """
        seconds = self._timing.generate * (0.5 + 2.5 * self._draws.uniform("generate") ** 3)
        if self._draws.uniform("weights_lost") < self._faults.weights_lost:
            raise DataLostError(self.name, f"version {weights.version} died with its owner")
        bounds = [
            len(request.groups) * part // self._timing.portions for part in range(self._timing.portions + 1)
        ]
        shares = [request.groups[first:last] for first, last in itertools.pairwise(bounds)]
        portions = [share for share in shares if share] or [()]
        dies_in = self._portion_of("rollout_death", self._faults.rollout_death, len(portions))
        lost_in = self._portion_of("answer_lost", self._faults.answer_lost, len(portions))
        for index, groups in enumerate(portions):
            if index == dies_in:
                await asyncio.sleep(seconds / 2)
                raise WorkerLostError(self.name, "died while sampling")
            generated = await self._sample(replace(request, groups=groups), weights, seconds / len(portions))
            if index == lost_in:
                raise WorkerLostError(self.name, "died while answering")
            yield generated

    async def update(self, weights: PublishedWeights) -> None:
        """Do nothing, because there are no weights."""

    def _portion_of(self, fault: str, probability: float, portions: int) -> int | None:
        """The portion in which a fault occurs; None if it does not."""
        occurs = self._draws.uniform(fault) < probability
        return int(self._draws.uniform(f"{fault} portion") * portions) if occurs else None

    async def _sample(self, request: RolloutRequest, weights: PublishedWeights, seconds: float) -> Generated:
        tokens = self._timing.tokens_per_rollout * request.group_size * len(request.groups)
        with self._meter.span(request.activity, request.step) as measure:
            await asyncio.sleep(seconds)
            measure.tokens = tokens
        block = BlockRef(SimulatedBlock(weights.version))
        return Generated(request, block=block, tokens=tokens, spans=self._meter.take())


class SimulatedRewardWorker:
    """Scores after a short time or hangs. A hang is noticed after `call_timeout_seconds`, and
    the worker is replaced.
    """

    def __init__(
        self,
        name: str,
        draws: Draws,
        timing: Timing,
        faults: Faults,
        clock: Clock,
        call_timeout_seconds: float,
        sink: UsageSink | None = None,
    ) -> None:
        self.name = name
        self._draws, self._timing, self._faults, self._clock = draws, timing, faults, clock
        self._sink, self._call_timeout_seconds = sink, call_timeout_seconds

    async def score(self, generated: Generated) -> Scored:
        """Return one ticket per group. One group in eight is uninformative."""
        start_ns = self._clock.now_ns()
        if self._draws.uniform("rollouts_lost") < self._faults.rollouts_lost:
            raise DataLostError(self.name, "the block died with its node")
        hangs = self._draws.uniform("reward_hang") < self._faults.reward_hang
        try:
            async with asyncio.timeout(self._call_timeout_seconds):
                await asyncio.sleep(self._faults.hang_seconds if hangs else self._timing.score)
        except TimeoutError as error:
            raise WorkerLostError(self.name, f"no answer in {self._call_timeout_seconds:g} s") from error
        request, block = generated.request, generated.block
        assert isinstance(block, SimulatedBlock)
        tokens = block.group_tokens or self._timing.tokens_per_rollout * request.group_size
        tickets = tuple(
            GroupTicket(
                group_id=group_id,
                prompt_id=prompt.prompt_id,
                oldest_version=block.version,
                tokens=tokens,
                reward_mean=0.5,
                informative=group_id % 8 != 0,
                row=row,
                block=generated.block,
                scores=ScoreRef(None),
            )
            for row, (group_id, prompt) in enumerate(request.groups)
        )
        rollouts = request.group_size * len(request.groups)
        summary = CountingSummary(rollouts, generated.tokens, _sampled_answers(request))
        span = Span(Activity.SCORE, start_ns, self._clock.now_ns(), Role.REWARD, self.name)
        _record(self._sink, span, request.step, generated.tokens)
        return Scored(tickets, summary, (span,))

    async def record(
        self, step: int, tickets: Sequence[GroupTicket], directory: Path, kind: RecordKind, sample: int
    ) -> list[dict[str, Any]]:
        """Write nothing, because there are no tokens."""
        if self._draws.uniform("disk_full") < self._faults.disk_full:
            raise StorageError(self.name, "no space left on device")
        return [{"step": step, "group_id": ticket.group_id} for ticket in tickets[:sample]]


def _sampled_answers(request: RolloutRequest) -> dict[str, Mean]:
    """Of the n sampled answers to prompt i, the first i mod (n + 1) are correct. The
    wrong ones are all equal.
    """
    sums: dict[str, Mean] = {}
    if request.samples_heldout:
        size = request.group_size
        for index, _ in request.groups:
            right = [answer < index % (size + 1) for answer in range(size)]
            values = prompt_values(size, right, ["right" if is_right else "wrong" for is_right in right])
            sums = merged(sums, {name: Mean(value, 1) for name, value in values.items()})
    return sums


@dataclass
class SimulatedLearner:
    """A `LearnerStage` whose model is the list of groups it was trained on, which a restore
    must reproduce exactly.
    """

    draws: Draws
    timing: Timing
    faults: Faults
    clock: Clock
    trained: list[int] = field(default_factory=list[int])
    staleness: list[int] = field(default_factory=list[int])
    """Staleness of each batch that was trained on, in order."""
    prompts: dict[int, str] = field(default_factory=dict[int, str])
    """The prompt of each group that was trained on."""
    rebuilt: int = 0
    sink: UsageSink | None = None
    _copied: list[int] = field(default_factory=list[int])

    async def update(self, batch: Batch) -> Updated:
        start_ns = self.clock.now_ns()
        if self.draws.uniform("learner_death") < self.faults.learner_death:
            await asyncio.sleep(self.timing.update / 2)
            raise WorkerLostError("learner-0", "died while updating")
        if self.draws.uniform("batch_lost") < self.faults.batch_lost:
            raise DataLostError("learner-0", "the block died with its node")
        await asyncio.sleep(self.timing.update)
        if batch.step == self.faults.non_finite_step:
            raise NonFiniteError("policy/loss", float("nan"), batch.step)
        self.trained.extend(ticket.group_id for ticket in batch.tickets)
        self.staleness.append(batch.step - batch.oldest_version)
        self.prompts.update({ticket.group_id: ticket.prompt_id for ticket in batch.tickets})
        tokens = sum(ticket.tokens for ticket in batch.tickets)
        work = TokenWork(tokens, tokens, tokens)
        report = StepReport(batch.step + 1, {"policy/loss": 1.0 / (batch.step + 1)}, trained=work)
        span = Span(Activity.UPDATE, start_ns, self.clock.now_ns(), Role.LEARNER, "learner-0")
        _record(self.sink, span, batch.step, tokens)
        return Updated(report, (span,))

    async def publish(self, version: WeightVersion) -> PublishedWeights:
        """Publish a version without any weights, sometimes late."""
        start_ns = self.clock.now_ns()
        self._may_die("publishing")
        late = self.draws.uniform("late_publish") < self.faults.late_publish
        await asyncio.sleep(self.faults.hang_seconds if late else self.timing.publish)
        span = Span(Activity.SYNC, start_ns, self.clock.now_ns(), Role.LEARNER, "learner-0")
        _record(self.sink, span, version, 0)
        return PublishedWeights(version, WeightRef(None), (span,))

    async def save(self, directory: Path, step: int) -> tuple[Span, ...]:
        lines = [str(group) for group in self.trained]
        (directory / TRAINED).write_text("\n".join(lines[: len(lines) // 2]))
        self._may_die("saving")
        (directory / TRAINED).write_text("\n".join(lines))
        return ()

    async def snapshot(self, step: int) -> tuple[Span, ...]:
        self._may_die("copying")
        self._copied = list(self.trained)
        return ()

    async def write(self, directory: Path) -> None:
        """Write the copy after some time. A learner that was rebuilt in the meantime no longer has a copy."""
        copied, life = self._copied, self.rebuilt
        (directory / TRAINED).write_text("half of it")
        await asyncio.sleep(self.timing.write)
        if life != self.rebuilt:
            raise WorkerLostError("learner-0", "died while writing")
        self._may_die("writing")
        (directory / TRAINED).write_text("\n".join(map(str, copied)))

    async def load(self, directory: Path) -> None:
        self._may_die("loading")
        try:
            self.trained = [int(line) for line in (directory / TRAINED).read_text().split()]
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{directory} is not a checkpoint of this learner: {error}") from error

    async def export(self, directory: Path) -> None:
        self._may_die("exporting")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / TRAINED).write_text("\n".join(map(str, self.trained)))

    async def rebuild(self) -> None:
        """Start new ranks. Everything learned is lost until a checkpoint is loaded."""
        await asyncio.sleep(self.timing.restart)
        self.trained = []
        self.rebuilt += 1
        self._may_die("starting")

    def _may_die(self, doing: str) -> None:
        if self.draws.uniform(f"learner_death {doing}") < self.faults.learner_death_elsewhere:
            raise WorkerLostError("learner-0", f"died while {doing}")


def _record(sink: UsageSink | None, span: Span, step: int, tokens: int) -> None:
    """Emit a span as the actors of a cluster do. Each simulated actor has a lease of its own."""
    if sink is not None and span.role is not None:
        sink.emit(
            SpanRecorded(
                event_id=new_event_id(),
                lease_id=f"{span.actor}-lease",
                actor=span.actor,
                role=span.role,
                activity=span.activity,
                start_ns=span.start_ns,
                end_ns=span.end_ns,
                step=step,
                tokens=tokens,
            )
        )
