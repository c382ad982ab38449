"""Updates of the learner: model FLOPs utilisation, and peak memory against the planner's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_parts.device import limits_of, peak_memory, reset_peak_memory, seconds_of, synchronize
from benchmarks.gpu_parts.models import Family, Size, random_model, word_tokenizer
from orchestrator.capacity.accelerators import Range
from orchestrator.capacity.flops import BACKWARD, work_flops
from orchestrator.capacity.job import Job, Lengths
from orchestrator.capacity.memory import learner_memory
from orchestrator.config.compose import compose
from orchestrator.training.advantages import ADVANTAGES
from orchestrator.training.learner.batching import plan
from orchestrator.training.learner.config import LearnerConfig
from orchestrator.training.learner.deepspeed_learner import DeepSpeedLearner, PolicyModel, layout_for
from orchestrator.training.learner.logprobs import TokenScorer
from orchestrator.training.learner.losses import LOSSES, ClipRange
from orchestrator.training.learner.losses.objective import Objective, TokenColumns
from orchestrator.training.learner.micro_batch import MicroBatch, collate
from orchestrator.training.learner.rows import AlgorithmSpec, minibatch_rows, trained_on
from orchestrator.training.learner.sharding.distributed import DistributedInit
from orchestrator.training.models.fused_attention import pad_values_for_fused_kernels
from orchestrator.training.records import BatchPart, Finish, Prompt, RolloutBlock, ScoreBlock, TokenWork

UPDATES = 3


def learner_update(size: Size, family: Family, device: torch.device) -> dict[str, Any]:
    """Updates of the learner that runs use: one rank, ZeRO 1, float32 master weights, DeepSpeed."""
    model = random_model(size, family, device).cpu()
    reset_peak_memory(device)
    config = learner_config(size)
    place = "cpu" if device.type == "cpu" else f"cuda:{device.index or 0}"
    learner = DeepSpeedLearner(
        DistributedInit(0, 1, "auto", place),
        config,
        rule(size),
        PolicyModel(model, word_tokenizer(size)),
        steps=1000,
    )
    batch = random_batch(size)
    work = learner.update(0, batch).trained
    seconds: list[float] = []
    for step in range(1, UPDATES + 1):
        synchronize(device)
        start = time.perf_counter()
        learner.update(step, batch)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    peak, planned = peak_memory(device), learner_memory(job(size, family, config)).total
    learner.close()
    return {
        **_speed(size, family, device, work, min(seconds)),
        "peak_memory_bytes": peak,
        "planned_memory_bytes": planned,
        "planned_over_measured": None if peak is None else planned / peak,
    }


def plain_update(size: Size, family: Family, device: torch.device) -> dict[str, Any]:
    """The same work without DeepSpeed: the learner's micro-batches, scorer and objective in one process, with
    clipping and AdamW on the bfloat16 weights. Its optimizer state is smaller than that of a run, so its
    memory is not compared with the plan.
    """
    model = random_model(size, family, device).train()
    pad_values_for_fused_kernels(model)
    reset_peak_memory(device)
    scorer, spec = TokenScorer(model, temperature=1.0), rule(size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    (rows,) = minibatch_rows(random_batch(size), spec, 1)
    (planned,) = plan([len(row) for row in rows], 1, size.micro_batch_tokens, layout_for(model))
    batches = [collate([rows[i] for i in indices], layout_for(model)).to(device) for indices in planned]

    def update() -> None:
        for batch in batches:
            torch.dot(_losses(scorer, model, batch, spec), batch.weights).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    seconds = seconds_of(update, device, UPDATES)
    return {
        **_speed(size, family, device, trained_on(rows), seconds),
        "peak_memory_bytes": peak_memory(device),
    }


def _losses(scorer: TokenScorer, model: Any, batch: MicroBatch, spec: AlgorithmSpec) -> torch.Tensor:  # noqa: ANN401
    logprobs, entropies = scorer(model, batch)
    columns = TokenColumns(
        logprobs, batch.sampled_logprobs, batch.advantages, rows=batch.token_rows, entropies=entropies
    )
    return spec.objective(columns).loss


def _speed(
    size: Size, family: Family, device: torch.device, work: TokenWork, seconds: float
) -> dict[str, Any]:
    limits = limits_of(device, size)
    flops = (1 + BACKWARD) * work_flops(size.shape(family), work)
    return {
        "tokens": work.tokens,
        "update_seconds": seconds,
        "tokens_per_s": work.tokens / seconds,
        "mfu": flops / seconds / limits.flops,
        "limits_from": limits.source,
    }


def rule(size: Size) -> AlgorithmSpec:
    """GRPO with a token-level loss."""
    return AlgorithmSpec(
        advantages=ADVANTAGES.get("grpo"),
        objective=Objective(LOSSES.get("clipped"), ClipRange(0.2, 0.28), None, 0.0, "k3"),
        aggregation="token",
        drop_uninformative=False,
        temperature=1.0,
        max_new_tokens=size.new_tokens,
    )


def learner_config(size: Size) -> LearnerConfig:
    """One rank without activation checkpointing; the rest is the default of jobs."""
    changed = {
        "world_size": 1,
        "zero_stage": 1,
        "expert_parallel_size": 1,
        "micro_batch_tokens": size.micro_batch_tokens,
        "activation_checkpointing": False,
        "offload": "none",
        "bucket_bytes": size.bucket_bytes,
        "learning_rate": 1e-6,
        "threads": 0,
    }
    return LearnerConfig.model_validate(compose("grpo", []).learner.model_dump() | changed)


def job(size: Size, family: Family, learner: LearnerConfig) -> Job:
    """The measured work as `orchestrator plan` reads it."""
    config = compose("grpo", ["algorithm=grpo_token"])
    config = config.model_copy(
        update={
            "model": config.model.model_copy(update={"dtype": "bfloat16", "context": size.context}),
            "learner": learner,
            "rollout": config.rollout.model_copy(update={"max_new_tokens": size.new_tokens}),
            "cluster": config.cluster.model_copy(update={"resource": "gpu"}),
        }
    )
    response = float(size.new_tokens)
    lengths = Lengths(size.prompt_tokens, size.prompt_tokens, Range(response, response, response))
    return Job(config, size.shape(family), lengths)


def random_batch(size: Size) -> Sequence[BatchPart]:
    """Groups of rollouts of the maximum length with rewards 0 and 1 in turn."""
    draw = np.random.default_rng(0)
    groups, rollouts = size.learner_groups, size.learner_groups * size.group_size
    vocabulary = size.architectures["dense"]["vocab_size"]
    tokens = rollouts * size.new_tokens
    block = RolloutBlock(
        group_ids=np.arange(groups, dtype=np.int64),
        group_size=size.group_size,
        prompts=tuple(Prompt(f"gpu_check/train/{index}", "", {}) for index in range(groups)),
        prompt_tokens=draw.integers(1, vocabulary, groups * size.prompt_tokens, dtype=np.int32),
        prompt_offsets=np.arange(groups + 1, dtype=np.int64) * size.prompt_tokens,
        tokens=draw.integers(1, vocabulary, tokens, dtype=np.int32),
        offsets=np.arange(rollouts + 1, dtype=np.int64) * size.new_tokens,
        logprobs=np.full(tokens, -np.log(vocabulary), dtype=np.float32),
        versions=np.zeros(tokens, dtype=np.int32),
        trainable=np.ones(tokens, dtype=np.bool_),
        finish=np.full(rollouts, Finish.LENGTH, dtype=np.uint8),
        texts=("",) * rollouts,
    )
    rewards = np.tile([0.0, 1.0], rollouts // 2)
    flags = np.zeros(rollouts, np.uint8)
    scores = ScoreBlock(rewards, {"accuracy": rewards}, flags, ("",) * rollouts, flags.astype(np.bool_))
    return [BatchPart(block, scores, tuple(range(groups)))]
