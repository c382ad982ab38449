"""The facts of a group, on the worked example of `records`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from orchestrator.training.group_facts import GroupFacts, group_facts
from orchestrator.training.records import Prompt, RolloutBlock, ScoreBlock

BLOCK = RolloutBlock(
    group_ids=np.array([7, 8]),
    group_size=2,
    prompts=(Prompt("a", "1+2=", {}), Prompt("b", "5-5=", {})),
    prompt_tokens=np.zeros(8, np.int32),
    prompt_offsets=np.array([0, 4, 8]),
    tokens=np.zeros(9, np.int32),
    offsets=np.array([0, 2, 4, 6, 9]),
    logprobs=np.zeros(9, np.float32),
    versions=np.array([3, 4, 4, 4, 5, 5, 5, 5, 5], np.int32),
    trainable=np.ones(9, np.bool_),
    finish=np.zeros(4, np.uint8),
    texts=("3.", "4.", "0.", "10."),
)
SCORES = ScoreBlock(
    rewards=np.array([1.0, 0.0, 0.5, 0.5]),
    components={},
    grades=np.zeros(4, np.uint8),
    reasons=("",) * 4,
    reflected=np.zeros(4, np.bool_),
)


def test_the_facts_of_each_group() -> None:
    assert group_facts(BLOCK, SCORES) == (
        GroupFacts(3, 4, 0.5, True, solved=False),
        GroupFacts(5, 5, 0.5, False, solved=False),
    )


def test_a_group_without_a_token() -> None:
    empty = replace(BLOCK, offsets=np.array([0, 0, 0, 6, 9]))
    assert group_facts(empty, SCORES)[0] == GroupFacts(0, 0, 0.5, True, solved=False)
