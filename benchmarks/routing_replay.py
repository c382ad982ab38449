"""Measures the benefit of rollout routing replay: the gap between the learner's log-probs and the sampler's,
with and without replaying the sampler's routes.

    python benchmarks/routing_replay.py [--json] [--versions 0 4] [--models tiny_moe qwen3_moe ...]

Each family has random weights, made peaked enough that routes matter. 16 prompts x 8 rollouts are sampled
by the `hf` engine, which records the routes, and the learner runs an update on them (its learning rate is
0, so that only the routes differ). Both compute in the same dtype, but with different batches, masks and
kernels. `versions`: by how many updates of noise (1 % of each weight) the learner is ahead of the
sampler, as with stale rollouts.

- logprob_gap: mean |learner log-prob - sampler log-prob| over the tokens, in nats;
- ratio_error: |mean importance ratio - 1|;
- rerouted: share of (token, layer) pairs that the learner would have routed to another set of experts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from machine import write_result
from transformers import PreTrainedModel

from orchestrator.training.learner.deepspeed_learner import DeepSpeedLearner, PolicyModel
from orchestrator.training.learner.sharding.distributed import DistributedInit
from orchestrator.training.models.characters import character_tokenizer
from orchestrator.training.models.routers import RouteRecorder
from orchestrator.training.records import BatchPart, Prompt, RolloutBlock, SamplingParams, ScoreBlock
from orchestrator.training.rollouts.blocks import sample_block
from orchestrator.training.rollouts.engines.hf.sampler import HFSampler
from orchestrator.training.rollouts.stepped import StepEngine
from tests.support.exactness_setting import Case, learner_config, update_rule
from tests.support.moe_families import MODELS, build

CPU = torch.device("cpu")
TOKENIZER = character_tokenizer(64)
PROMPTS, GROUP_SIZE, CONTEXT = 16, 8, 64
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table."""

    model: str
    dtype: str
    versions: int
    replay: bool
    logprob_gap: float
    ratio_error: float
    rerouted: float


def peaked(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """The family's tiny model with larger weights, so that experts and the tokens routed to them differ."""
    model = build(name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 5
    return model.to(dtype)  # pyright: ignore[reportArgumentType]


def sample(model: PreTrainedModel) -> RolloutBlock:
    """The rollouts, with their routes."""
    engine = StepEngine(HFSampler(model, TOKENIZER, CONTEXT, 64, CPU, record_routes=True))
    draw = random.Random(0)
    texts = [f"{draw.randint(1, 99)}+{draw.randint(1, 99)}=" for _ in range(PROMPTS)]
    prompts = [Prompt(f"sums/train/{index}", text, {}) for index, text in enumerate(texts)]
    sampling = SamplingParams(temperature=0.9, top_p=1.0, max_new_tokens=32, seed=0)
    return asyncio.run(sample_block(engine, range(PROMPTS), prompts, GROUP_SIZE, sampling))


def scored(block: RolloutBlock) -> BatchPart:
    """Random rewards, so that every group has a gradient and every rollout is computed."""
    rewards = np.tile(np.array([0.0, 1.0]), len(block) // 2)
    scores = ScoreBlock(
        rewards,
        {"accuracy": rewards},
        np.zeros(len(block), np.uint8),
        ("",) * len(block),
        np.zeros(len(block), np.bool_),
    )
    return BatchPart(block, scores, tuple(range(len(block.group_ids))))


def drift(model: PreTrainedModel, versions: int) -> None:
    """Change every weight randomly by about 1 % of its size per version."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(versions):
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator) * 0.01
                parameter += (noise * parameter.float().abs().mean()).to(parameter)


def rerouted(model: PreTrainedModel, block: RolloutBlock) -> float:
    """The share of (token, layer) pairs whose recorded set of experts differs from the one that the plain
    model chooses for each rollout.
    """
    assert block.routes is not None
    assert block.prompt_routes is not None
    recorder = RouteRecorder(model)
    other = total = 0
    for index in range(len(block)):
        asked = slice(*block.prompt_offsets[index // GROUP_SIZE : index // GROUP_SIZE + 2])
        answered = slice(*block.offsets[index : index + 2])
        ids = np.concatenate([block.prompt_tokens[asked], block.tokens[answered]])[:-1]
        routes = np.concatenate([block.prompt_routes[asked], block.routes[answered]])[:-1]
        with torch.no_grad():
            model(torch.from_numpy(ids).long()[None])
        differs = (np.sort(recorder.take().numpy()) != np.sort(routes)).any(axis=-1)
        other, total = other + int(differs.sum()), total + differs.size
    return other / total


def measure(name: str, dtype: str, versions: int) -> list[Row]:
    """Measure both rows of a model: without and with replay."""
    block = sample(peaked(name, DTYPES[dtype]))
    ahead = peaked(name, DTYPES[dtype])
    drift(ahead, versions)
    share = rerouted(ahead, block)
    rows: list[Row] = []
    for replay in (False, True):
        model = peaked(name, DTYPES[dtype])
        drift(model, versions)
        learner = DeepSpeedLearner(
            DistributedInit(0, 1, "gloo", "cpu"),
            learner_config(Case(name, 1, 1, 1), "adamw").model_copy(update={"micro_batch_tokens": 2048}),
            update_rule(),
            PolicyModel(model, TOKENIZER),
            1,
        )
        part = scored(block if replay else replace(block, routes=None, prompt_routes=None))
        metrics = learner.update(0, [part]).metrics
        learner.close()
        ratio = metrics["offpolicy/importance_ratio_mean"]
        gap = metrics["offpolicy/logprob_gap_mean"]
        rows.append(Row(name, dtype, versions, replay, gap, abs(ratio - 1), 0.0 if replay else share))
    return rows


def print_table(rows: Sequence[Row]) -> None:
    """Print two lines per model."""
    print("model        dtype     versions  replay       gap  ratio - 1  rerouted")
    for row in rows:
        replay = "on" if row.replay else "off"
        print(
            f"{row.model:<12} {row.dtype:<9} {row.versions:>8} {replay:>7} {row.logprob_gap:>9.2e} "
            f"{row.ratio_error:>10.2e} {row.rerouted:>9.2%}"
        )


def main() -> int:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--versions", nargs="+", type=int, default=[0, 4])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row
        for name in arguments.models
        for dtype in DTYPES
        for versions in arguments.versions
        for row in measure(name, dtype, versions)
    ]
    document = [asdict(row) for row in rows]
    write_result("routing_replay", document)
    if arguments.json:
        print(json.dumps(document, indent=2))
    else:
        print_table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
