"""Runs the engine `vllm` in its own environment and writes what it sampled as JSON.

    .venv-vllm/bin/python -m tests.support.vllm_side MODEL.json ROLLOUT.json FOUND.json cpu

The process that judges it is the learner's: it computes the log-probs of the same tokens with transformers.
Version 0 is the initial model, and version v adds noise to the weights of version v - 1.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

from orchestrator.training.models.build import build_model, build_tokenizer
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.records import SamplingParams
from orchestrator.training.rollouts.config import RolloutConfig
from orchestrator.training.rollouts.engines.vllm.launch import start_session
from orchestrator.training.rollouts.engines.vllm.model_folder import model_folder, read_config
from orchestrator.training.rollouts.engines.vllm.sampling import rollout_seed, vllm_parameters
from orchestrator.training.rollouts.engines.vllm.session import Rollout, VllmSession

NOISE = 0.02
LONG, LONG_OF_TINY = 60, 170
"""Tokens of rollouts that an update interrupts: a tiny model samples many within a moment."""
PROMPT = list(range(100, 180))
"""Longer than a block of the KV cache, so that the rollouts of a group share a prefix."""

CROWD = 8
"""Prompts that arrive together and do not fit into one forward pass."""


def crowded_prompt(number: int) -> list[int]:
    return [300 + number, *PROMPT]


@cache
def _initial(model: str) -> dict[str, torch.Tensor]:
    return build_model(ModelConfig.model_validate_json(model), seed=0).state_dict()


def weights_of(model: ModelConfig, version: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a version, under the names that the learner publishes them."""
    for name, tensor in _initial(model.model_dump_json()).items():
        if tensor.is_floating_point():
            for number in range(1, version + 1):
                noise = torch.Generator().manual_seed(number * 100_003 + tensor.numel())
                tensor = tensor + NOISE * tensor.std() * torch.randn(tensor.shape, generator=noise)
        yield name, tensor


def group(size: int, tokens: int, *, temperature: float = 1.0) -> list[dict[str, Any]]:
    """Parameters of rollouts that no token ends. A least number of tokens would change their log-probs."""
    sampling = SamplingParams(temperature, 1.0, tokens, 7)
    return [vllm_parameters(sampling, tokens, (), rollout_seed(7, 40, member)) for member in range(size)]


async def interrupted(session: VllmSession, model: ModelConfig, version: int, how: str) -> dict[str, Any]:
    """Long rollouts that get new weights while they are under way."""
    weights = list(weights_of(model, version))
    tokens = LONG if sum(tensor.numel() for _, tensor in weights) > 10**7 else LONG_OF_TINY
    before = asyncio.ensure_future(session.sample(PROMPT, group(3, tokens)))
    await asyncio.sleep(0.3)
    await session.load(version, weights, recompute=how == "recompute")
    after = await session.sample(PROMPT, group(2, 16))
    return {"before": rows(await before), "after": rows(after)}


def rows(rollouts: list[Rollout]) -> list[dict[str, Any]]:
    return [asdict(rollout) for rollout in rollouts]


async def aborted(session: VllmSession) -> dict[str, Any]:
    """What vLLM samples, and still has to do, after four rollouts were cancelled."""
    task = asyncio.ensure_future(session.sample(PROMPT, group(4, 150)))
    await asyncio.sleep(0.5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    after = rows(await session.sample(PROMPT, group(1, 8)))
    llm: Any = session._llm  # pyright: ignore[reportPrivateUsage]
    return {"after_abort": after, "unfinished_after_abort": llm.get_num_unfinished_requests()}


async def scenario(session: VllmSession, model: ModelConfig) -> dict[str, Any]:
    found: dict[str, Any] = {}
    await session.load(0, weights_of(model, 0), recompute=False)
    found["initial"] = rows(await session.sample(PROMPT, group(3, 24)))
    crowd = [session.sample(crowded_prompt(number), group(1, 8)) for number in range(CROWD)]
    found["crowded"] = [rows(each)[0] for each in await asyncio.gather(*crowd)]
    found["cooler"] = rows(await session.sample(PROMPT, group(2, 16, temperature=0.6)))
    await session.load(1, weights_of(model, 1), recompute=False)
    found["updated"] = rows(await session.sample(PROMPT, group(3, 24)))
    for version, how in enumerate(("continue", "recompute"), start=2):
        found[how] = await interrupted(session, model, version, how)
    return found | await aborted(session)


def main() -> None:
    model = ModelConfig.model_validate_json(Path(sys.argv[1]).read_text())
    rollout = RolloutConfig.model_validate_json(Path(sys.argv[2]).read_text())
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder(model, read_config(model), build_tokenizer(model), Path(scratch))
        session = start_session(model, rollout, folder, torch.device(sys.argv[4]), seed=0)
    found = asyncio.run(scenario(session, model))
    session.close()
    Path(sys.argv[3]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
