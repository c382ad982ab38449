"""The Ray actors: thin shells around plain objects, which they build, call and measure.

Constructors do almost nothing, because Ray reports an error of a constructor without the error itself.
`ready` (`setup` for a learner rank) builds the plain object, and its errors reach the driver unchanged.

A call that produces data returns two values: the data, which stays in the object store, and a small record,
which the driver fetches. Heavy imports are local, because the driver imports this module too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from orchestrator.training.cluster.key_values import KeyValues, Operation
from orchestrator.training.cluster.run_spec import ActorIdentity, RunSpec, log_to_run_directory, start_meter
from orchestrator.training.group_facts import Criterion, GroupFacts, group_facts
from orchestrator.training.records import (
    BatchPart,
    RecordKind,
    RolloutBlock,
    ScoreBlock,
    StepReport,
    WeightVersion,
)
from orchestrator.training.stages import PublishedWeights, RolloutRequest, Span, Summary
from orchestrator.training.usage import Activity
from orchestrator.training.weights.config import WeightsConfig
from orchestrator.training.weights.rendezvous import Rendezvous

if TYPE_CHECKING:
    from orchestrator.training.rollouts.worker import Portion
    from orchestrator.training.weights.channel import WeightHandle


DISK = "disk"
"""Concurrency group of `LearnerActor.write`: one thread beside the one that trains."""
STORE = "store"
"""Concurrency group of `LearnerActor.store`, which other ranks call while rank 0 waits for them."""


@dataclass(frozen=True, slots=True)
class BlockRefs:
    """References to a block and its scores, and which of its groups are meant (indices into the block)."""

    block: ray.ObjectRef[RolloutBlock]
    scores: ray.ObjectRef[ScoreBlock]
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ScoredInfo:
    """The small part of `RewardActor.score`'s answer."""

    groups: tuple[GroupFacts, ...]
    summary: Summary
    """Sums for the step's metrics; with pass@k and maj@k if the groups are sampled held-out answers."""
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class RankSetup:
    """What a learner rank needs to join the others."""

    rank: int
    world_size: int
    device: str
    one_node: bool
    """Whether all ranks are on one node."""
    weights: WeightsConfig
    """With `channel` resolved: never `auto`."""
    rank_0: Any = field(repr=False)
    """Handle of rank 0's actor; None for rank 0 itself."""
    rendezvous: Rendezvous | None
    """Where the ranks of one host meet to write weights together; None if they are on several hosts."""


class RolloutActor:
    """Generates rollouts, for several requests at the same time: an asynchronous actor around an
    `EngineWorker`. Requests are identified by keys that the driver chooses.
    """

    def __init__(self, spec: RunSpec, identity: ActorIdentity) -> None:
        log_to_run_directory(spec, identity)
        self._spec = spec
        self._meter = start_meter(spec, identity)

    async def ready(self) -> tuple[Span, ...]:
        """Build the engines. Called once, before any other method."""
        with self._meter.span(Activity.LOAD, 0):
            import torch

            from orchestrator.training.cluster.object_store_channel import WeightReader
            from orchestrator.training.rollouts.engines import ENGINES
            from orchestrator.training.rollouts.worker import Engines, EngineWorker

            spec, rollout = self._spec, self._spec.rollout
            if rollout.threads:
                torch.set_num_threads(rollout.threads)
            device = torch.device("cuda" if spec.use_gpu else "cpu")
            # One engine serves training and evaluation, unless training replays worked solutions.
            engines = {
                name: ENGINES.get(name)(spec.model, rollout, device, spec.seed)
                for name in sorted({rollout.engine, spec.evaluation_engine})
            }
            self._worker = EngineWorker(
                Engines(engines[rollout.engine], engines[spec.evaluation_engine]),
                WeightReader().fetch,
                self._meter,
                rollout.on_new_weights,
                rollout.stream_seconds,
            )
        return self._meter.take()

    async def generate(self, key: int, request: RolloutRequest, weights: PublishedWeights) -> Portion:
        """See `EngineWorker.generate`."""
        return await self._worker.generate(key, request, weights)

    async def collect(self, key: int) -> Portion:
        """See `EngineWorker.collect`."""
        return await self._worker.collect(key)

    async def cancel(self, key: int) -> None:
        """See `EngineWorker.cancel`."""
        self._worker.cancel(key)

    async def update(self, weights: PublishedWeights) -> None:
        """See `EngineWorker.update`."""
        await self._worker.update(weights)

    async def retire(self) -> None:
        """Use the slot no more as far as the ledger is concerned: the process is about to be stopped."""
        self._meter.close()


class RewardActor:
    """Scores rollouts, sums them up for the metrics, and writes them to disk."""

    def __init__(self, spec: RunSpec, identity: ActorIdentity) -> None:
        log_to_run_directory(spec, identity)
        self._spec, self._identity = spec, identity
        self._meter = start_meter(spec, identity)

    def ready(self) -> tuple[Span, ...]:
        """Start the grader and its process. Called once, before any other method."""
        with self._meter.span(Activity.LOAD, 0):
            from orchestrator.training.rewards.grader import Grader
            from orchestrator.training.telemetry.failures import FailureLog
            from orchestrator.training.telemetry.recorder import RolloutRecorder

            spec, name = self._spec, self._identity.name
            log = spec.directory / "logs" / f"{name}.log"
            self._grader = Grader(spec.reward, spec.rollout.max_new_tokens, log)
            self._recorder = RolloutRecorder()
            self._failures = FailureLog(spec.directory / "rollouts" / f"failed-{name}.jsonl")
        return self._meter.take()

    def score(self, block: RolloutBlock, step: int, sampled: bool) -> tuple[ScoreBlock, ScoredInfo]:
        """Score a block. `sampled`: its groups are sampled answers to held-out prompts."""
        from orchestrator.training.telemetry.sampled_answers import sampled_answer_means
        from orchestrator.training.telemetry.summary import summarise

        with self._meter.span(Activity.SCORE, step) as measure:
            scores = self._grader.grade(block, count_votes=sampled)
            summary = replace(summarise(block, scores), failure=self._failures.write(step, block, scores))
            if sampled:
                summary = replace(summary, sampled=sampled_answer_means(block, scores))
            groups = group_facts(block, scores, self._criterion())
            measure.tokens = len(block.tokens)
        return scores, ScoredInfo(groups, summary, self._meter.take())

    def _criterion(self) -> Criterion:
        algorithm = self._spec.algorithm
        return algorithm.dynamic_sampling_by if algorithm.dynamic_sampling else "reward"

    def record(
        self, step: int, refs: Sequence[BlockRefs], directory: Path, kind: RecordKind, sample: int
    ) -> list[dict[str, Any]]:
        """Write the groups' rollouts to disk; returns `sample` of them."""
        parts = _fetch(refs)
        self._recorder.record(step, parts, directory, kind)
        return self._recorder.sample(parts, sample, self._spec.seed + step)

    def __ray_shutdown__(self) -> None:
        """End the grader's process with the actor."""
        if hasattr(self, "_grader"):
            self._grader.close()


class LearnerActor:
    """One learner rank."""

    def __init__(self, spec: RunSpec, identity: ActorIdentity) -> None:
        log_to_run_directory(spec, identity)
        self._spec = spec
        self._meter = start_meter(spec, identity)
        if spec.learner.threads:
            # Before torch is imported: OpenMP reads the variable once.
            os.environ["OMP_NUM_THREADS"] = str(spec.learner.threads)
        self._keys = KeyValues()
        self._batch: list[BatchPart] = []

    def store(self, operation: Operation, *arguments: object) -> object:
        """Rank 0: an operation on the store through which the ranks find each other, for another rank."""
        return self._keys.run(operation, *arguments)

    def setup(self, setup: RankSetup) -> tuple[Span, ...]:
        """Join the other ranks and build the model. Blocks until `setup` was called on every rank."""
        with self._meter.span(Activity.LOAD, 0):
            from orchestrator.training.cluster.build_learner import build_learner
            from orchestrator.training.cluster.object_store_channel import make_channel
            from orchestrator.training.cluster.rank_store import RankStore, bind_to_interface
            from orchestrator.training.learner.sharding.distributed import GROUP_TIMEOUT, DistributedInit
            from orchestrator.training.weights.publishing import WeightPublisher

            def access(operation: Operation, *arguments: object) -> object:
                if setup.rank_0 is None:
                    return self._keys.run(operation, *arguments)
                store_of_rank_0 = setup.rank_0.store.options(concurrency_group=STORE)
                ref: ray.ObjectRef[object] = store_of_rank_0.remote(operation, *arguments)
                return ray.get(ref, timeout=GROUP_TIMEOUT.total_seconds())

            store = RankStore(access, GROUP_TIMEOUT)
            if setup.world_size > 1:
                bind_to_interface(ray.util.get_node_ip_address(), setup.one_node)
            backend = self._spec.learner.backend
            init = DistributedInit(setup.rank, setup.world_size, backend, setup.device, store)
            self._learner = build_learner(init, self._spec)
            channel = make_channel(setup.weights)
            self._publisher = WeightPublisher(setup.rank, self._learner, channel, setup.rendezvous)
        return self._meter.take()

    def fetch(self, step: int, refs: Sequence[BlockRefs]) -> None:
        """Map the groups of the next `update` from the object store.

        Raises Ray's ObjectLostError if one is gone. No rank may begin an update before all ranks have their
        groups: it would wait in a collective for ever.
        """
        with self._meter.span(Activity.UPDATE, step):
            self._batch = _fetch(refs)

    def update(self, step: int) -> tuple[StepReport, tuple[Span, ...]]:
        """One training step on the groups that `fetch` mapped."""
        with self._meter.span(Activity.UPDATE, step) as measure:
            batch, self._batch = self._batch, []
            report = self._learner.update(step, batch)
            measure.tokens = int(report.metrics.get("learner/tokens", 0))
            if self._spec.snapshots:
                self._learner.prepare_snapshot()
        return report, self._meter.take()

    def publish(self, version: WeightVersion) -> tuple[WeightHandle | None, tuple[Span, ...]]:
        """Publish the weights as `version`. Rank 0 returns the handle, the other ranks return None."""
        with self._meter.span(Activity.SYNC, version):
            handle = self._publisher.publish(version)
        return handle, self._meter.take()

    def save(self, directory: Path, step: int) -> tuple[Span, ...]:
        """Write this rank's shard."""
        with self._meter.span(Activity.CHECKPOINT, step):
            self._learner.save(directory)
        return self._meter.take()

    def snapshot(self, step: int) -> tuple[Span, ...]:
        """Copy this rank's shard to host memory, which is the part of a checkpoint that a step waits for."""
        with self._meter.span(Activity.CHECKPOINT, step):
            self._learner.snapshot()
        return self._meter.take()

    def write(self, directory: Path) -> None:
        """Write the snapshot in a separate thread. The slot is charged for training, which continues."""
        self._learner.write(directory)

    def load(self, directory: Path) -> tuple[Span, ...]:
        """Restore this rank from the shards in `directory`."""
        with self._meter.span(Activity.LOAD, 0):
            self._learner.load(directory)
        return self._meter.take()

    def export(self, directory: Path) -> tuple[Span, ...]:
        """Rank 0 writes the model as a Hugging Face folder; the other ranks help to gather it."""
        with self._meter.span(Activity.CHECKPOINT, 0):
            self._learner.export(directory)
        return self._meter.take()


def _fetch(refs: Sequence[BlockRefs]) -> list[BatchPart]:
    """The columns behind the references, mapped from this node's object store."""
    blocks: list[RolloutBlock] = ray.get([each.block for each in refs])
    scores: list[ScoreBlock] = ray.get([each.scores for each in refs])
    return [
        BatchPart(block, score, each.groups) for block, score, each in zip(blocks, scores, refs, strict=True)
    ]
