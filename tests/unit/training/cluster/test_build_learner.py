"""A learner rank built from its config."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from orchestrator.config.compose import compose
from orchestrator.launch.assembly import run_spec
from orchestrator.training.cluster.build_learner import algorithm_spec, build_learner
from orchestrator.training.learner.rows import GaeSpec
from orchestrator.training.models.build import build_model
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.records import BatchPart
from tests.fakes.rollout_batches import random_part
from tests.support.exactness_ranks import single_rank


def cross_entropy(config: ModelConfig, seed: int, part: BatchPart) -> float:
    """The mean over response tokens of log sum_v exp(z_v) - z_token, over the whole vocabulary and without
    temperature: the loss of supervised training.
    """
    model, block = build_model(config, seed).eval(), part.rollouts
    losses: list[torch.Tensor] = []
    for row, (start, end) in enumerate(pairwise(block.offsets)):
        first, last = block.prompt_offsets[row // block.group_size :][:2]
        prompt = torch.tensor(block.prompt_tokens[first:last], dtype=torch.long)
        response = torch.tensor(block.tokens[start:end], dtype=torch.long)
        with torch.no_grad():
            logits = model(torch.cat((prompt, response))[None]).logits[0, len(prompt) - 1 : -1].double()
        losses.append(torch.logsumexp(logits, -1) - logits.gather(1, response[:, None])[:, 0])
    return float(torch.cat(losses).mean())


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_cold_start_minimises_the_cross_entropy_at_any_rollout_temperature(
    temperature: float, tmp_path: Path
) -> None:
    config = compose("sft", [f"rollout.temperature={temperature}", "model=tiny_moe", "tracking=none"])
    part = random_part(0, 3, 1, vocabulary=64, lengths=(4, 12))
    learner = build_learner(single_rank(), run_spec(config, "run", 1, tmp_path))
    loss = learner.update(1, [part]).metrics["policy/loss"]
    learner.close()
    assert loss == pytest.approx(cross_entropy(config.model, config.seed, part), abs=1e-5)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo_token"])
def test_a_learner_has_a_value_head_if_its_advantage_needs_one(algorithm: str, tmp_path: Path) -> None:
    config = compose("grpo", [f"algorithm={algorithm}", "model=tiny_moe", "tracking=none"])
    learner = build_learner(single_rank(), run_spec(config, "run", 1, tmp_path))
    metrics = learner.update(0, [random_part(0, 3, 2, vocabulary=64)]).metrics
    learner.close()
    values = {name for name in metrics if name.startswith("value/")}
    expected = {"value/loss", "value/clip_fraction", "value/explained_variance"}
    assert values == (expected if algorithm == "ppo" else set())


def test_the_settings_of_gae_reach_the_learner() -> None:
    config = compose("grpo", ["algorithm=ppo", "algorithm.gae.lam=0.9", "algorithm.gae.value_clip=null"])
    spec = algorithm_spec(config.algorithm, config.rollout)
    assert spec.gae == GaeSpec(gamma=1.0, lam=0.9, value_coefficient=0.1, value_clip=None)
