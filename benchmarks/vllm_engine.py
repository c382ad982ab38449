"""The engine `vllm` against bare vLLM, and how long a weight update stops it.

    .venv-vllm/bin/python benchmarks/vllm_engine.py [--rounds 3] [--prompts 16] [--tokens 64] [--json]

Runs in the environment of the engine (`make engines`), with SmolLM2-135M in float32 and one thread on CPUs.
Both sides have a vLLM of their own in this process, with the same settings, and sample groups of 8 rollouts
of the same prompts, of exactly the same length, in alternation. Bare vLLM is `LLM.generate` with `n=8`,
without seeds, log-probs and weight versions, all of which training needs.

Then rollouts run while the weights are replaced with `continue`. The engine is stopped from the call that
pauses it until it goes on; the time of the load itself is measured inside. The target is that the difference
is at most one decode step.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from machine import write_result

from orchestrator.training.models.build import build_model, build_tokenizer
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.prompts.chat_template import render
from orchestrator.training.records import SamplingParams
from orchestrator.training.rollouts.config import RolloutConfig
from orchestrator.training.rollouts.engines.vllm.launch import (
    engine_arguments,
    environment_variables,
    start_session,
)
from orchestrator.training.rollouts.engines.vllm.model_folder import model_folder, read_config
from orchestrator.training.rollouts.engines.vllm.sampling import rollout_seed, vllm_parameters
from orchestrator.training.rollouts.engines.vllm.session import VllmSession

GROUP = 8
CONF = Path(__file__).parent.parent / "conf"
MODEL = {"context": 512}
ROLLOUT = {"engine": "vllm", "max_batch_rows": 32, "threads": 1}


def read_yaml(name: str) -> dict[str, Any]:
    """A file of conf/ without interpolations."""
    return yaml.safe_load((CONF / f"{name}.yaml").read_text())


class Timed:
    """An `AsyncLLM` that notes when it was paused and how long the load took."""

    def __init__(self, llm: Any) -> None:  # noqa: ANN401
        self.wrapped = llm
        self.paused = self.resumed = self.load = 0.0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.wrapped, name)

    async def pause_generation(self, **keywords: Any) -> None:  # noqa: ANN401
        self.paused = time.perf_counter()
        await self.wrapped.pause_generation(**keywords)

    async def resume_generation(self) -> None:
        await self.wrapped.resume_generation()
        self.resumed = time.perf_counter()

    async def collective_rpc(self, *arguments: Any) -> Any:  # noqa: ANN401
        began = time.perf_counter()
        found = await self.wrapped.collective_rpc(*arguments)
        self.load = time.perf_counter() - began
        return found


class Sides:
    """Both vLLMs, on the same prompts."""

    def __init__(self, prompts: int, tokens: int, scratch: Path) -> None:
        model = ModelConfig.model_validate(read_yaml("model/smollm2_135m") | MODEL)
        rollout = RolloutConfig.model_validate(read_yaml("rollout/hf") | ROLLOUT)
        self.tokens = tokens
        os.environ.update(environment_variables(rollout))
        tokenizer = build_tokenizer(model)
        self.prompts = [
            render(tokenizer, f"What is {number} plus {number * 7 % 31}? Think step by step.").tokens
            for number in range(prompts)
        ]
        device = torch.device("cpu")
        network = build_model(model, 0)
        folder = model_folder(model, read_config(model), tokenizer, scratch / "ours")
        self.session = start_session(model, rollout, folder, device, seed=0)
        self.weights = list(network.state_dict().items())
        whole = scratch / "bare"
        network.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        arguments = engine_arguments(model, rollout, whole, device, 0)
        from vllm import LLM  # pyright: ignore

        for name in ("load_format", "worker_extension_cls"):
            del arguments[name]
        self.bare = LLM(**arguments)

    def bare_seconds(self) -> float:
        from vllm import SamplingParams as Parameters  # pyright: ignore

        parameters = Parameters(n=GROUP, temperature=1.0, max_tokens=self.tokens, ignore_eos=True)
        began = time.perf_counter()
        self.bare.generate(
            [{"prompt_token_ids": prompt} for prompt in self.prompts], parameters, use_tqdm=False
        )
        return time.perf_counter() - began

    async def ours_seconds(self, seed: int) -> float:
        began = time.perf_counter()
        await asyncio.gather(*(self.group(number, seed, self.tokens) for number in range(len(self.prompts))))
        return time.perf_counter() - began

    async def group(self, number: int, seed: int, tokens: int) -> None:
        sampling = SamplingParams(1.0, 1.0, tokens, seed)
        rollouts = [
            vllm_parameters(sampling, tokens, (), rollout_seed(seed, number, member))
            for member in range(GROUP)
        ]
        await self.session.sample(self.prompts[number], rollouts)


async def measure_update(session: VllmSession, sides: Sides, version: int) -> dict[str, float]:
    """The seconds of one update while 32 rollouts are running, and of a decode step of these rollouts."""
    timed: Any = Timed(session._llm)  # pyright: ignore[reportPrivateUsage]
    session._llm = timed  # pyright: ignore[reportPrivateUsage]
    tokens = 2 * sides.tokens
    began = time.perf_counter()
    await asyncio.gather(*(sides.group(number, version, tokens) for number in range(4)))
    step = (time.perf_counter() - began) / tokens
    running = [asyncio.ensure_future(sides.group(number, -version, tokens)) for number in range(4)]
    await asyncio.sleep(20 * step)
    await session.load(version, sides.weights, recompute=False)
    await asyncio.gather(*running)
    session._llm = timed.wrapped  # pyright: ignore[reportPrivateUsage]
    return {"step_s": step, "load_s": timed.load, "stopped_s": timed.resumed - timed.paused}


async def measure(sides: Sides, rounds: int) -> list[dict[str, Any]]:
    """The two rows of the result."""
    await sides.session.load(0, sides.weights, recompute=False)
    total = len(sides.prompts) * GROUP * sides.tokens
    seconds: dict[str, list[float]] = {"bare": [], "engine": []}
    for seed in range(rounds + 1):  # the first round is a warm-up
        seconds["bare"].append(sides.bare_seconds())
        seconds["engine"].append(await sides.ours_seconds(seed))
    ratios = [bare / ours for bare, ours in zip(seconds["bare"][1:], seconds["engine"][1:], strict=True)]
    updates = [await measure_update(sides.session, sides, version) for version in range(1, rounds + 1)]
    update = {name: statistics.median(each[name] for each in updates) for name in updates[0]}
    speeds = {side: round(total / statistics.median(taken[1:])) for side, taken in seconds.items()}
    besides_load = (update["stopped_s"] - update["load_s"]) / update["step_s"]
    return [
        {
            "part": "throughput",
            "tokens_per_s": speeds,
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(each, 3) for each in ratios],
        },
        {
            "part": "update",
            **{name: round(value, 4) for name, value in update.items()},
            "stopped_besides_load_in_steps": round(besides_load, 2),
        },
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sides = Sides(options.prompts, options.tokens, Path(scratch))
        rows = asyncio.run(measure(sides, options.rounds))
    sides.session.close()
    write_result("vllm_engine", rows)
    print(json.dumps(rows, indent=2 if options.json else None))


if __name__ == "__main__":
    sys.exit(main())
