"""What share of the speed of plain matrix products does the hf engine reach?

    python benchmarks/engine_gemms.py [--rounds 5] [--threads 1] [--profile] [--json]

SmolLM2-135M with 32 rows, in float32 and in bfloat16. The engine samples 4 prompts x 8 rollouts of 96 tokens
that nothing ends, so that all rows stay in the batch. The matrix products are those of the linear layers of a
decode step, with the same weights, and nothing else: no attention, no norms, no sampling, no cache. Both
alternate in one process and are compared by CPU seconds. With --profile the operators that take the most time
are printed too: they say what the rest is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from engine_vs_generate import CPU, Workload, smollm2_135m
from machine import write_result
from torch.profiler import ProfilerActivity, profile
from transformers.utils import logging

from orchestrator.training.records import SamplingParams
from orchestrator.training.rollouts.blocks import sample_block
from orchestrator.training.rollouts.engines.hf.sampler import HFSampler
from orchestrator.training.rollouts.stepped import StepEngine

PROMPTS, GROUP, TOKENS = 4, 8, 96
ROWS = PROMPTS * GROUP


class Endless(HFSampler):
    """Nothing but `max_new_tokens` ends a rollout."""

    def __init__(self, load: Workload) -> None:
        super().__init__(load.model, load.tokenizer, load.context, ROWS, CPU, record_routes=False)
        self._stops = frozenset[int]()


def engine_side(load: Workload) -> Callable[[int], int]:
    """A function from a seed to the number of sampled tokens."""
    engine = StepEngine(Endless(load))

    def sample(seed: int) -> int:
        sampling = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=TOKENS, seed=seed)
        block = asyncio.run(sample_block(engine, range(PROMPTS), load.prompts[:PROMPTS], GROUP, sampling))
        return int(block.lengths.sum())

    return sample


def gemm_side(model: torch.nn.Module, dtype: torch.dtype) -> Callable[[int], int]:
    """The same for the linear layers alone."""
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    inputs = {layer.in_features: torch.randn(ROWS, 1, layer.in_features, dtype=dtype) for layer in layers}

    @torch.inference_mode()
    def multiply(seed: int) -> int:
        del seed
        for _ in range(TOKENS // 2):
            for layer in layers:
                layer(inputs[layer.in_features])
        return ROWS * (TOKENS // 2)

    return multiply


def tokens_per_cpu_second(side: Callable[[int], int], seed: int) -> float:
    began = time.process_time()
    return side(seed) / (time.process_time() - began)


def measure(dtype: torch.dtype, rounds: int, profiled: bool) -> dict[str, Any]:
    """One row of the result."""
    load = smollm2_135m()
    load.model.to(dtype)  # pyright: ignore[reportArgumentType]
    engine, gemms = engine_side(load), gemm_side(load.model, dtype)
    engine(0)
    if profiled:
        with profile(activities=[ProfilerActivity.CPU]) as found:
            engine(0)
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=20), file=sys.stderr)
    speeds = [
        (tokens_per_cpu_second(engine, seed), tokens_per_cpu_second(gemms, seed))
        for seed in range(1, rounds + 1)
    ]
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "rows": ROWS,
        "threads": torch.get_num_threads(),
        "engine_tokens_per_cpu_s": round(statistics.median(engine for engine, _ in speeds)),
        "gemms_tokens_per_cpu_s": round(statistics.median(gemms for _, gemms in speeds)),
        "share": round(statistics.median(engine / gemms for engine, gemms in speeds), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    rows = [measure(dtype, options.rounds, options.profile) for dtype in (torch.float32, torch.bfloat16)]
    write_result("engine_gemms", rows)
    print(json.dumps(rows, indent=2 if options.json else None))


if __name__ == "__main__":
    main()
