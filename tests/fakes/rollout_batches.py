"""Seeded batches of random rollouts, for tests of learners."""

from __future__ import annotations

import numpy as np

from orchestrator.training.records import BatchPart, Finish, Prompt, RolloutBlock, ScoreBlock


def random_part(
    seed: int,
    groups: int,
    group_size: int,
    *,
    vocabulary: int = 64,
    lengths: tuple[int, int] = (1, 12),
    version: int = 0,
) -> BatchPart:
    """`groups` groups with prompts of 2 to 6 tokens and responses of `lengths` (first to last, inclusive),
    rewards 0 or 1, and log-probs near those of a uniform distribution. Token 0 never occurs: as the padding
    token of the test models its embedding is zero, so that a router gives all experts the same score, and
    which ones it takes depends on the CPU.
    """
    draw = np.random.default_rng(seed)
    rollouts = groups * group_size
    prompt_lengths = draw.integers(2, 7, groups)
    response_lengths = draw.integers(lengths[0], lengths[1] + 1, rollouts)
    tokens = int(response_lengths.sum())
    block = RolloutBlock(
        group_ids=np.arange(groups, dtype=np.int64),
        group_size=group_size,
        prompts=tuple(Prompt(f"random/train/{index}", "", {}) for index in range(groups)),
        prompt_tokens=draw.integers(1, vocabulary, int(prompt_lengths.sum()), dtype=np.int32),
        prompt_offsets=np.concatenate([[0], np.cumsum(prompt_lengths)]).astype(np.int64),
        tokens=draw.integers(1, vocabulary, tokens, dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(response_lengths)]).astype(np.int64),
        logprobs=(-np.log(vocabulary) + 0.1 * draw.standard_normal(tokens)).astype(np.float32),
        versions=np.full(tokens, version, dtype=np.int32),
        trainable=np.ones(tokens, dtype=np.bool_),
        finish=np.full(rollouts, Finish.STOP, dtype=np.uint8),
        texts=("",) * rollouts,
    )
    rewards = draw.integers(0, 2, rollouts).astype(np.float64)
    scores = ScoreBlock(
        rewards=rewards,
        components={"accuracy": rewards},
        grades=np.zeros(rollouts, dtype=np.uint8),
        reasons=("",) * rollouts,
        reflected=np.zeros(rollouts, dtype=np.bool_),
    )
    return BatchPart(block, scores, tuple(range(groups)))
