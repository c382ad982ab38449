"""Small rollout blocks and reward configs for tests of scoring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.training.records import Finish, Prompt, RolloutBlock
from orchestrator.training.rewards.completion import Completion
from orchestrator.training.rewards.config import RewardConfig


def reward_config(components: Mapping[str, float], **changes: Any) -> RewardConfig:
    values: dict[str, Any] = {
        "components": dict(components),
        "answer_formats": ["tags"],
        "workers": 1,
        "concurrency": 1,
        "timeout_seconds": 20.0,
        "memory_bytes": 0,
        "file_bytes": 0,
        "environment": [],
        "retries": 0,
        "failure_reward": -0.5,
        "failure_budget": 0.5,
        "max_restarts": 0,
        "overlong_buffer": 0,
        "reflection_pattern": r"\bwait\b",
    }
    return RewardConfig(**(values | changes))


def rollout_block(
    texts: Sequence[str], group_size: int = 1, reference: Mapping[str, Any] | None = None
) -> RolloutBlock:
    """One token per character. Prompt `i` is called `p<i>`."""
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    tokens, groups = int(lengths.sum()), len(texts) // group_size
    prompts = tuple(Prompt(f"p{index}", "question", reference or {}) for index in range(groups))
    return RolloutBlock(
        group_ids=np.arange(groups),
        group_size=group_size,
        prompts=prompts,
        prompt_tokens=np.zeros(groups, dtype=np.int32),
        prompt_offsets=np.arange(groups + 1),
        tokens=np.zeros(tokens, dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        logprobs=np.zeros(tokens, dtype=np.float32),
        versions=np.zeros(tokens, dtype=np.int32),
        trainable=np.ones(tokens, dtype=np.bool_),
        finish=np.full(len(texts), Finish.STOP, dtype=np.uint8),
        texts=tuple(texts),
    )


def completion(
    text: str, reference: Mapping[str, Any] | None = None, prompt: str = "question", **changes: Any
) -> Completion:
    return Completion(Prompt("p", prompt, reference or {}), text, len(text), Finish.STOP, 100, **changes)
