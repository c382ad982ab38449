"""Compares the hf engine with `model.generate`, with the same weights, prompts, rows, sampling and
threads, alternating in one process.

    python benchmarks/engine_vs_generate.py [--json] [--model tiny_moe] [--rounds 3]

Both sample at temperature 1 without truncation and hold at most `max_batch_rows` rows at once. `generate`
gets every rollout as a separate left-padded row, as many rows at once as fit.

Lengths: smollm2_135m answers reasoning_gym's `chain_sum` in its own words: short answers, long ones and some
that never end, which is a realistic spread. tiny_moe has random weights here, which would end a response once
in 103 tokens; one hidden channel is made constant and the end-of-sequence logit reads it, so that each token
ends the response with probability about 1/28: a geometric spread. The weights are the same for both systems.

The speed-up compares CPU seconds of one thread: other work on the machine slows both, but does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from machine import describe, write_result
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from orchestrator.training.models.build import build_model, build_tokenizer
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.prompts.chat_template import end_of_turn, render_prompt
from orchestrator.training.reasoning_gym_import import create_dataset
from orchestrator.training.records import Prompt, SamplingParams
from orchestrator.training.rollouts.blocks import sample_block
from orchestrator.training.rollouts.engines.hf.sampler import HFSampler
from orchestrator.training.rollouts.stepped import StepEngine

CONF = Path(__file__).parent.parent / "conf" / "model"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Workload:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    context: int
    prompts: list[Prompt]
    group_size: int
    max_new_tokens: int
    max_batch_rows: int


def tiny_moe() -> Workload:
    """A training step of the demo: 64 prompts x 8."""
    config = _config("tiny_moe")
    model, tokenizer = build_model(config, seed=0), build_tokenizer(config)
    _end_once_in(28, model, tokenizer)
    draw = random.Random(0)
    texts = [
        f"{draw.randint(1, 9)},{draw.randint(1, 9)},{draw.randint(1, 9)} -> {draw.randint(1, 20)}:"
        for _ in range(64)
    ]
    return Workload(model, tokenizer, config.context, _prompts(texts), 8, 96, 512)


def smollm2_135m() -> Workload:
    """A pretrained chat model on sums: 8 prompts x 8, with at most 32 rows at once."""
    config = _config("smollm2_135m")
    dataset = create_dataset("chain_sum", size=8, seed=0, min_terms=2, max_terms=4)
    texts = [f"{dataset[index]['question']} Think step by step." for index in range(8)]
    model, tokenizer = build_model(config, seed=0), build_tokenizer(config)
    return Workload(model, tokenizer, config.context, _prompts(texts), 8, 256, 32)


WORKLOADS: dict[str, Callable[[], Workload]] = {"tiny_moe": tiny_moe, "smollm2_135m": smollm2_135m}


def with_engine(load: Workload) -> Callable[[int], list[int]]:
    """Return a function from a seed to the lengths of all rollouts."""
    model = copy.deepcopy(load.model)
    engine = StepEngine(
        HFSampler(model, load.tokenizer, load.context, load.max_batch_rows, CPU, record_routes=False)
    )

    def sample(seed: int) -> list[int]:
        sampling = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=load.max_new_tokens, seed=seed)
        ids = range(len(load.prompts))
        return asyncio.run(
            sample_block(engine, ids, load.prompts, load.group_size, sampling)
        ).lengths.tolist()

    return sample


def with_generate(load: Workload) -> Callable[[int], list[int]]:
    """The same with `model.generate`."""
    rows = [
        render_prompt(load.tokenizer, prompt.text) for prompt in load.prompts for _ in range(load.group_size)
    ]
    end = end_of_turn(load.tokenizer)
    generate: Callable[..., torch.Tensor] = getattr(load.model, "generate")  # noqa: B009  (a mixin that types don't show)

    def sample(seed: int) -> list[int]:
        torch.manual_seed(seed)
        lengths: list[int] = []
        for start in range(0, len(rows), load.max_batch_rows):
            chunk = rows[start : start + load.max_batch_rows]
            width = max(len(row) for row in chunk)
            ids = torch.tensor([[end] * (width - len(row)) + row for row in chunk])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in chunk])
            output = generate(
                ids,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=load.max_new_tokens,
                eos_token_id=end,
                pad_token_id=end,
            )[:, width:]
            ended = (output == end).int().cumsum(1) > 0
            lengths += ((~ended).sum(1) + ended.any(1)).tolist()
        return lengths

    return sample


def measure(name: str, rounds: int) -> list[dict[str, Any]]:
    """Run both systems alternately, `rounds` times after a warm-up. Returns medians."""
    load = WORKLOADS[name]()
    systems = {"generate": with_generate(load), "engine": with_engine(load)}
    seen: dict[str, list[tuple[int, float, float, int, int]]] = {system: [] for system in systems}
    for index in range(rounds + (name == "tiny_moe")):  # the first round of a fast workload is a warm-up
        for system, sample in systems.items():
            wall, cpu = time.perf_counter(), time.process_time()
            lengths = sample(index)
            seen[system].append(
                (
                    sum(lengths),
                    time.perf_counter() - wall,
                    time.process_time() - cpu,
                    max(lengths),
                    len(lengths),
                )
            )
    rows = [_row(name, system, load, taken[-rounds:]) for system, taken in seen.items()]
    for row in rows:
        row["speedup"] = round(row["tokens_per_cpu_s"] / rows[0]["tokens_per_cpu_s"], 2)
    return rows


def _row(
    name: str, system: str, load: Workload, taken: list[tuple[int, float, float, int, int]]
) -> dict[str, Any]:
    tokens = sum(entry[0] for entry in taken)
    return {
        "model": name,
        "system": system,
        "prompts": len(load.prompts),
        "group_size": load.group_size,
        "max_batch_rows": load.max_batch_rows,
        "max_new_tokens": load.max_new_tokens,
        "threads": torch.get_num_threads(),
        "rounds": len(taken),
        "length_mean": round(tokens / sum(entry[4] for entry in taken), 1),
        "length_max": max(entry[3] for entry in taken),
        "tokens_per_s": round(statistics.median(entry[0] / entry[1] for entry in taken)),
        "tokens_per_cpu_s": round(statistics.median(entry[0] / entry[2] for entry in taken)),
    }


@torch.no_grad()
def _end_once_in(tokens: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Make the end-of-sequence logit nearly constant, so that a random model ends once in `tokens` tokens."""
    embedding, head = model.get_parameter("model.embed_tokens.weight"), model.get_parameter("lm_head.weight")
    end = end_of_turn(tokenizer)
    embedding[:, 0] = 0.3  # large compared with what the layers add to this channel
    head[:, 0] = 0.0
    head[end] = 0.0
    ids = torch.randint(7, len(tokenizer), (64, 32), generator=torch.Generator().manual_seed(0))
    channel = model.get_submodule("model")(ids).last_hidden_state[..., 0].mean()
    head[end, 0] = math.log((len(tokenizer) - 1) / (tokens - 1)) / channel


def _config(name: str) -> ModelConfig:
    return ModelConfig.model_validate(yaml.safe_load((CONF / f"{name}.yaml").read_text()))


def _prompts(texts: list[str]) -> list[Prompt]:
    return [Prompt(f"benchmark/train/{index}", text, {}) for index, text in enumerate(texts)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout instead of a table")
    parser.add_argument("--model", choices=sorted(WORKLOADS), action="append", help="default: all of them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    for name in arguments.model or WORKLOADS:
        rows += measure(name, arguments.rounds)
        if arguments.model is None:
            write_result("engine_vs_generate", rows)
    if arguments.json:
        json.dump({"machine": describe(), "rows": rows}, sys.stdout, indent=2)
        return
    columns = ["model", "system", "length_mean", "length_max", "tokens_per_s", "tokens_per_cpu_s", "speedup"]
    print("  ".join(f"{column:>16}" for column in columns))
    for row in rows:
        print("  ".join(f"{row[column]!s:>16}" for column in columns))


if __name__ == "__main__":
    main()
