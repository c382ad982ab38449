"""Calls of engines from tests that are not asynchronous."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from orchestrator.training.records import Prompt, RolloutBlock, SamplingParams
from orchestrator.training.rollouts.blocks import sample_block
from orchestrator.training.rollouts.engine import Engine, NamedTensor
from orchestrator.training.tensors.buckets import flatten

BUCKET_BYTES = 1 << 16


def generate(
    engine: Engine,
    group_ids: Sequence[int],
    prompts: Sequence[Prompt],
    group_size: int,
    sampling: SamplingParams,
) -> RolloutBlock:
    """Sample groups together and wait for all of them."""
    return asyncio.run(sample_block(engine, group_ids, prompts, group_size, sampling))


def load(engine: Engine, version: int, weights: Iterable[NamedTensor], *, recompute: bool = False) -> None:
    """Replace the weights of an engine."""
    asyncio.run(engine.update_weights(version, flatten(weights, BUCKET_BYTES), recompute=recompute))
