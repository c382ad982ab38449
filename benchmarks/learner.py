"""Compares the learner's update with a plain torch loop and with two ranks, and measures the benefit of
batching by a token budget. The results are ratios of tokens per second, measured alternately in one run.

    python benchmarks/learner.py [--json] [--rounds 5]

The model is tiny_moe (DeepSeek-V3's architecture, float32). The batch is 64 prompts x 8 rollouts that the
`hf` engine sampled, each token ending its rollout with probability about 1/28: a spread of 1 to 96 tokens.
Rewards are random, so every rollout has a gradient. Tokens are those of prompts and responses, without
padding; every process computes with one thread.

- plain_loop: the learner with one rank (ZeRO 1) against a loop of plain torch on the same micro-batches:
  forward, `log_softmax` of the trained positions' logits, clipped objective, backward, `clip_grad_norm_`,
  fused AdamW. By CPU seconds of the process, which other work on the machine disturbs less.
- token_budget: the learner against itself with padded batches: rows in their given order, as many per
  micro-batch as fit the same budget at the length of the longest. By CPU seconds.
- two_ranks: two ranks (ZeRO 1, gloo) against one. By wall time of the slower rank; needs two idle cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from engine_vs_generate import CPU, tiny_moe
from machine import write_result
from torch import Tensor
from transformers import PreTrainedModel

from orchestrator.config.compose import compose
from orchestrator.training.learner import batching, deepspeed_learner
from orchestrator.training.learner.config import LearnerConfig
from orchestrator.training.learner.deepspeed_learner import DeepSpeedLearner, PolicyModel
from orchestrator.training.learner.micro_batch import MicroBatch, collate
from orchestrator.training.learner.rows import computed_rows, minibatch_rows
from orchestrator.training.learner.sharding.distributed import DistributedInit
from orchestrator.training.models.build import build_model, build_tokenizer
from orchestrator.training.records import BatchPart, SamplingParams, ScoreBlock
from orchestrator.training.rollouts.blocks import sample_block
from orchestrator.training.rollouts.engines.hf.sampler import HFSampler
from orchestrator.training.rollouts.stepped import StepEngine
from tests.support.exactness_setting import update_rule
from tests.support.ranks import start_ranks, tcp_store

BUDGET = 1536
CLIP = (0.2, 0.28)
TARGETS = {"plain_loop": 0.97, "token_budget": 1.6, "two_ranks": 1.7}

Step = Callable[[], None]


def learner_config(world_size: int) -> LearnerConfig:
    """The learner of the grpo job on the CPU, without updates of the router
    bias, which the plain loop lacks.
    """
    values = compose("grpo", []).learner.model_dump()
    changed: dict[str, Any] = {
        "world_size": world_size,
        "zero_stage": 1,
        "micro_batch_tokens": BUDGET,
        "threads": 1,
    }
    changed |= {"router_bias_update_speed": 0.0, "learning_rate": 1e-5}
    return LearnerConfig.model_validate(values | changed)


def sampled_batch() -> list[BatchPart]:
    """The batch, sampled by the engine."""
    load = tiny_moe()
    engine = StepEngine(
        HFSampler(load.model, load.tokenizer, load.context, load.max_batch_rows, CPU, record_routes=False)
    )
    sampling = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=load.max_new_tokens, seed=0)
    ids = range(len(load.prompts))
    block = asyncio.run(sample_block(engine, ids, load.prompts, load.group_size, sampling))
    rewards = np.tile(np.array([0.0, 1.0]), len(block) // 2)
    flags = np.zeros(len(block), np.uint8)
    scores = ScoreBlock(rewards, {"accuracy": rewards}, flags, ("",) * len(block), flags.astype(np.bool_))
    return [BatchPart(block, scores, tuple(ids))]


def model() -> PreTrainedModel:
    """A new tiny_moe, always with the same weights."""
    return build_model(compose("grpo", []).model, seed=0)


def learner(rank: int, world_size: int, port: int) -> DeepSpeedLearner:
    """One rank over gloo."""
    return DeepSpeedLearner(
        DistributedInit(rank, world_size, "gloo", "cpu", tcp_store(rank, world_size, port)),
        learner_config(world_size),
        update_rule(),
        PolicyModel(model(), build_tokenizer(compose("grpo", []).model)),
        steps=1000,
    )


def learner_step(rank: DeepSpeedLearner, batch: Sequence[BatchPart]) -> Step:

    def step() -> None:
        rank.update(0, batch)

    return step


def plain_step(batch: Sequence[BatchPart]) -> Step:
    """An update with plain torch, on the micro-batches that the learner would use."""
    trained, rule, config = model().train(), update_rule(), learner_config(1)
    parameters = list(trained.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0, fused=True)

    def step() -> None:
        (rows,) = minibatch_rows(batch, rule, 1)
        rows = computed_rows(rows, rule)
        (planned,) = batching.plan([len(row) for row in rows], 1, BUDGET, "padded")
        for indices in planned:
            plain_loss(
                trained, collate([rows[index] for index in indices], "padded"), rule.temperature
            ).backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain_loss(trained: PreTrainedModel, batch: MicroBatch, temperature: float) -> Tensor:
    """The clipped objective of a micro-batch."""
    logits = trained(input_ids=batch.input_ids, use_cache=False).logits.flatten(0, 1)[batch.predictors]
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1).gather(1, batch.targets[:, None])[:, 0]
    ratio = torch.exp(logprobs - batch.sampled_logprobs)
    clipped = ratio.clamp(1 - CLIP[0], 1 + CLIP[1])
    return -(torch.minimum(ratio * batch.advantages, clipped * batch.advantages) * batch.weights).sum()


def padded_plan(
    lengths: Sequence[int], world_size: int, micro_batch_tokens: int, layout: batching.BatchFormat
) -> batching.MicroBatchPlan:
    """Rows in their given order, a fixed number per micro-batch."""
    del layout
    rows = max(1, micro_batch_tokens // max(lengths))
    share = list(range(len(lengths)))
    assert world_size == 1
    return [[share[start : start + rows] for start in range(0, len(share), rows)]]


def cpu_seconds(step: Step) -> float:
    """CPU seconds of this process for one step."""
    started = time.process_time()
    step()
    return time.process_time() - started


def alternating(one: Step, other: Step, rounds: int) -> tuple[float, float, float]:
    """Median seconds of both, and the median of other / one, measured alternately after a warm-up."""
    for warm_up in (one, other):
        warm_up()
    pairs = [(cpu_seconds(one), cpu_seconds(other)) for _ in range(rounds)]
    firsts, seconds = zip(*pairs, strict=True)
    ratio = statistics.median(second / first for first, second in pairs)
    return statistics.median(firsts), statistics.median(seconds), ratio


def in_one_process(rounds: int) -> list[dict[str, Any]]:
    """Measure plain_loop and token_budget."""
    batch = sampled_batch()
    rank = learner(0, 1, 0)
    update = learner_step(rank, batch)
    tokens = int(rank.update(0, batch).metrics["learner/tokens"])

    def update_padded() -> None:
        deepspeed_learner.plan = padded_plan
        try:
            update()
        finally:
            deepspeed_learner.plan = batching.plan

    rows = [
        ("plain_loop", *alternating(update, plain_step(batch), rounds)),
        ("token_budget", *alternating(update, update_padded, rounds)),
    ]
    rank.close()
    return [row(name, tokens, ours, other, ratio) for name, ours, other, ratio in rows]


def timed_rank(rank: int, port: int, counts: Sequence[int], directory: str) -> None:
    """Wall seconds of each step on this rank."""
    torch.set_num_threads(1)
    rounds, world_size = counts
    batch = sampled_batch()
    built = learner(rank, world_size, port)
    built.update(0, batch)
    seconds: list[float] = []
    for _ in range(rounds):
        dist.barrier()
        started = time.perf_counter()
        built.update(0, batch)
        seconds.append(time.perf_counter() - started)
    (Path(directory) / f"{rank}.json").write_text(json.dumps(seconds))


def wall_seconds(world_size: int, rounds: int) -> float:
    """The median over the rounds of the slower rank's seconds."""
    with tempfile.TemporaryDirectory() as directory:
        start_ranks(world_size, timed_rank, (rounds, world_size), directory)
        ranks = [json.loads((Path(directory) / f"{rank}.json").read_text()) for rank in range(world_size)]
    return statistics.median(max(step) for step in zip(*ranks, strict=True))


def two_ranks(rounds: int, tokens: int) -> dict[str, Any]:
    """Measure one rank, two ranks, and one rank again."""
    before, two, after = (wall_seconds(world_size, rounds) for world_size in (1, 2, 1))
    one = (before + after) / 2
    return row("two_ranks", tokens, two, one, one / two)


def row(name: str, tokens: int, ours: float, other: float, ratio: float) -> dict[str, Any]:
    """A row of the table. `ratio` is our tokens per second divided by the other's."""
    return {
        "comparison": name,
        "tokens": tokens,
        "learner_tokens_per_s": round(tokens / ours),
        "other_tokens_per_s": round(tokens / other),
        "ratio": round(ratio, 3),
        "target": TARGETS[name],
    }


def main() -> int:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-ranks", action="store_true", help="leave out the comparison by wall time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = in_one_process(arguments.rounds)
    if not arguments.skip_ranks:
        rows.append(two_ranks(arguments.rounds, rows[0]["tokens"]))
        write_result("learner", rows)
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        print("comparison    learner tok/s  other tok/s  ratio  target")
        for each in rows:
            speeds = f"{each['learner_tokens_per_s']:>13,} {each['other_tokens_per_s']:>12,}"
            print(f"{each['comparison']:<13} {speeds} {each['ratio']:>6.2f} {each['target']:>7.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
