"""Builds the embedded engine."""

from __future__ import annotations

import torch

from orchestrator.training.models.build import build_model, build_tokenizer
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.rollouts.config import RolloutConfig
from orchestrator.training.rollouts.engines.hf.sampler import HFSampler
from orchestrator.training.rollouts.stepped import StepEngine


def build(model: ModelConfig, rollout: RolloutConfig, device: torch.device, seed: int) -> StepEngine:
    """The engine with its own copy of the model, as version 0."""
    sampler = HFSampler(
        build_model(model, seed),
        build_tokenizer(model),
        model.context,
        rollout.max_batch_rows,
        device,
        record_routes=rollout.record_routes,
    )
    return StepEngine(sampler)
