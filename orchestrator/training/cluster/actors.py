"""The actors: thin shells that build a plain object, measure its calls and answer with small things.

An actor's answer comes in two parts where there is data: the data stays in the object store
(`num_returns=2`), the driver only fetches the second part. Heavy imports are inside `__init__`: the driver
imports this module too.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from orchestrator.training.cluster.parts import ActorIdentity, RunSpec, log_to_run_directory, start_meter
from orchestrator.training.records import (
    BatchPart,
    RecordKind,
    RolloutBlock,
    ScoreBlock,
    StepReport,
    WeightVersion,
)
from orchestrator.training.stages import RolloutRequest, Span, Summary
from orchestrator.training.usage import Activity

if TYPE_CHECKING:
    from orchestrator.training.learner.sharding.distributed import DistributedInit
    from orchestrator.training.rollouts.engine import Engine
    from orchestrator.training.weights.channel import WeightHandle

PartRefs = Sequence[tuple["ray.ObjectRef[RolloutBlock]", "ray.ObjectRef[ScoreBlock]", tuple[int, ...]]]


class RolloutActor:
    """Samples. Pulls the weights it is pointed at if its own are of another publish."""

    def __init__(self, parts: RunSpec, post: ActorIdentity) -> None:
        log_to_run_directory(parts, post)
        self._meter = start_meter(parts, post)
        with self._meter.span(Activity.LOAD, 0):
            import torch

            from orchestrator.training.cluster.weights import make_channel
            from orchestrator.training.rollouts.engines import ENGINES
            from orchestrator.training.rollouts.loading import WeightLoader

            self._channel = make_channel(parts.weights)
            if parts.rollout.threads:
                torch.set_num_threads(parts.rollout.threads)
            device = torch.device("cuda" if parts.use_gpu else "cpu")
            names = {parts.rollout.engine, parts.evaluation_engine}
            self._engines: dict[str, Engine] = {
                name: ENGINES.get(name)(parts.model, parts.rollout, device, parts.seed)
                for name in sorted(names)
            }
            self._loaders = [WeightLoader(engine) for engine in self._engines.values()]
        self._parts = parts
        self._held: bytes | None = None
        """Identity of the publish whose weights the engines have."""

    def ready(self) -> tuple[Span, ...]:
        """Answers once the engine is built."""
        return self._meter.take()

    def generate(
        self, request: RolloutRequest, version: WeightVersion, handle: WeightHandle
    ) -> tuple[RolloutBlock, tuple[int, tuple[Span, ...]]]:
        """The block, and (its tokens, spans). Raises WeightsNotFoundError if that version is gone."""
        from orchestrator.training.rollouts.engine import GenerateRequest

        # Not the version: a learner that was restored gives the same number to other weights.
        if handle.identity != self._held:
            self._pull(version, handle, request.step)
        evaluates = request.activity is Activity.EVALUATE
        engine = self._engines[self._parts.evaluation_engine if evaluates else self._parts.rollout.engine]
        group_ids, prompts = zip(*request.groups, strict=True)
        with self._meter.span(request.activity, request.step) as measure:
            block = engine.generate(GenerateRequest(group_ids, prompts, request.group_size, request.sampling))
            measure.tokens = len(block.tokens)
        return block, (len(block.tokens), self._meter.take())

    def _pull(self, version: WeightVersion, handle: WeightHandle, step: int) -> None:
        self._held = None  # until the last tensor is loaded the engine has a mixture
        with self._meter.span(Activity.SYNC, step):
            for loader in self._loaders:
                with contextlib.closing(self._channel.pull(handle)) as buckets:
                    loader.load(version, buckets)
        self._held = handle.identity


class RewardActor:
    """Grades, sums up for the metrics, and writes rollouts to disk."""

    def __init__(self, parts: RunSpec, post: ActorIdentity) -> None:
        log_to_run_directory(parts, post)
        self._meter = start_meter(parts, post)
        with self._meter.span(Activity.LOAD, 0):
            from orchestrator.training.rewards.grader import Grader
            from orchestrator.training.telemetry.failures import FailureLog
            from orchestrator.training.telemetry.recorder import RolloutRecorder

            log = parts.directory / "logs" / f"{post.name}.log"
            self._grader = Grader(parts.reward, parts.rollout.max_new_tokens, log)
            self._recorder = RolloutRecorder()
            self._failures = FailureLog(parts.directory / "rollouts" / f"failed-{post.name}.jsonl")
        self._seed = parts.seed

    def ready(self) -> tuple[Span, ...]:
        """Answers once the grader's process runs."""
        return self._meter.take()

    def score(
        self, block: RolloutBlock, step: int, sampled: bool
    ) -> tuple[ScoreBlock, tuple[list[tuple[int, int, float, bool]], Summary, tuple[Span, ...]]]:
        """The scores, and (a group's oldest version, tokens, mean reward and whether it is informative; sums;
        spans). The sums have pass@k and maj@k where groups are `sampled` answers to held-out prompts.
        """
        from orchestrator.training.telemetry.sampled_answers import sampled_answer_means
        from orchestrator.training.telemetry.summary import summarise

        with self._meter.span(Activity.SCORE, step) as measure:
            scores = self._grader.grade(block, count_votes=sampled)
            summary = replace(summarise(block, scores), failure=self._failures.write(step, block, scores))
            if sampled:
                summary = replace(summary, sampled=sampled_answer_means(block, scores))
            groups = _group_facts(block, scores)
            measure.tokens = len(block.tokens)
        return scores, (groups, summary, self._meter.take())

    def record(
        self, step: int, refs: PartRefs, directory: Path, kind: RecordKind, sample: int
    ) -> list[dict[str, Any]]:
        """Write the groups' rollouts; `sample` of them."""
        parts = _fetch(refs)
        self._recorder.record(step, parts, directory, kind)
        return self._recorder.sample(parts, sample, self._seed + step)

    def __ray_shutdown__(self) -> None:
        """End the grader's process with the actor."""
        self._grader.close()


class LearnerActor:
    """One learner rank."""

    def __init__(self, parts: RunSpec, post: ActorIdentity) -> None:
        log_to_run_directory(parts, post)
        self._parts = parts
        self._batch: list[BatchPart] = []
        self._meter = start_meter(parts, post)
        if parts.learner.threads:
            # Before torch is imported: OpenMP reads it once.
            os.environ["OMP_NUM_THREADS"] = str(parts.learner.threads)

    def address(self) -> str:
        """Where the other ranks can reach this one, rank 0: `host:port`. It listens there from now on."""
        host = ray.util.get_node_ip_address()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        return f"{host}:{self._listener.getsockname()[1]}"

    def setup(self, init: DistributedInit, together: bool) -> tuple[Span, ...]:
        """Join the other ranks and build the model. Every rank must be called. `together`: all
        are on one host.
        """
        with self._meter.span(Activity.LOAD, 0):
            from orchestrator.training.cluster.learner_parts import build_learner
            from orchestrator.training.cluster.weights import make_channel
            from orchestrator.training.weights.publishing import Rendezvous, WeightPublisher

            weights = self._parts.weights
            name = f"{init.master_addr}:{init.master_port}"
            meeting = Rendezvous(name, init.world_size, weights.timeout_seconds) if together else None
            if init.rank == 0:
                with self._listener:  # is closed, unless it is handed over
                    if init.world_size > 1:
                        init = replace(init, listener=self._listener.detach())
            self._learner = build_learner(init, self._parts)
            channel = make_channel(weights)
            self._publisher = WeightPublisher(init.rank, self._learner, channel, meeting)
        return self._meter.take()

    def fetch(self, step: int, refs: PartRefs) -> None:
        """Map the groups of the next `update` from the object store. Raises Ray's ObjectLostError if one is
        gone: no rank may begin an update before all have theirs, or it would wait in a collective for ever.
        """
        with self._meter.span(Activity.UPDATE, step):
            self._batch = _fetch(refs)

    def update(self, step: int) -> tuple[StepReport, tuple[Span, ...]]:
        """One training step on the groups that `fetch` got."""
        with self._meter.span(Activity.UPDATE, step) as measure:
            batch, self._batch = self._batch, []
            report = self._learner.update(step, batch)
            measure.tokens = int(report.metrics.get("learner/tokens", 0))
            if self._parts.snapshots:
                self._learner.prepare_snapshot()
        return report, self._meter.take()

    def publish(self, version: WeightVersion) -> tuple[Any, tuple[Span, ...]]:
        """Rank 0: the handle of the published version; the others help and answer with None."""
        with self._meter.span(Activity.SYNC, version):
            handle = self._publisher.publish(version)
        return handle, self._meter.take()

    def save(self, directory: Path, step: int) -> tuple[Span, ...]:
        """Write this rank's shard."""
        with self._meter.span(Activity.CHECKPOINT, step):
            self._learner.save(directory)
        return self._meter.take()

    def snapshot(self, step: int) -> tuple[Span, ...]:
        """Copy this rank's shard; the step waits for that, and it is what the checkpoint is charged with."""
        with self._meter.span(Activity.CHECKPOINT, step):
            self._learner.snapshot()
        return self._meter.take()

    def write(self, directory: Path) -> None:
        """Write the copy, in a thread of its own. The slot is charged for what it trains meanwhile."""
        self._learner.write(directory)

    def load(self, directory: Path) -> tuple[Span, ...]:
        """Read the shards."""
        with self._meter.span(Activity.LOAD, 0):
            self._learner.load(directory)
        return self._meter.take()

    def export(self, directory: Path) -> tuple[Span, ...]:
        """Rank 0 writes the Hugging Face folder; the others help to gather."""
        with self._meter.span(Activity.CHECKPOINT, 0):
            self._learner.export(directory)
        return self._meter.take()


def _fetch(refs: PartRefs) -> list[BatchPart]:
    """The columns behind the handles, mapped from this node's object store."""
    blocks: list[RolloutBlock] = ray.get([block for block, _, _ in refs])
    scores: list[ScoreBlock] = ray.get([score for _, score, _ in refs])
    return [
        BatchPart(block, score, rows) for block, score, (_, _, rows) in zip(blocks, scores, refs, strict=True)
    ]


def _group_facts(block: RolloutBlock, scores: ScoreBlock) -> list[tuple[int, int, float, bool]]:
    facts: list[tuple[int, int, float, bool]] = []
    size = block.group_size
    for row in range(len(block.group_ids)):
        start, end = int(block.offsets[row * size]), int(block.offsets[(row + 1) * size])
        rewards = scores.rewards[row * size : (row + 1) * size]
        oldest = int(block.versions[start:end].min()) if end > start else 0
        facts.append((oldest, end - start, float(rewards.mean()), bool((rewards != rewards[0]).any())))
    return facts
