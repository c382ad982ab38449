"""A cold start replays exactly the solution, or raises an error that explains why it cannot."""

from __future__ import annotations

import pytest

from orchestrator.errors import ConfigError
from orchestrator.training.models.characters import character_tokenizer
from orchestrator.training.records import Finish, Prompt, RolloutBlock, SamplingParams
from orchestrator.training.rollouts.engines.worked_solutions.engine import WorkedSolutionsEngine
from tests.support.engines import generate

TOKENIZER = character_tokenizer(64)
SOLUTION = "<think> 1+2=3 </think><answer>3</answer>"


def play(solution: str, max_new_tokens: int = 32) -> RolloutBlock:
    prompt, sampling = (
        Prompt("sums/train/0", "1+2=", {}, solution),
        SamplingParams(1.0, 1.0, max_new_tokens, 0),
    )
    return generate(WorkedSolutionsEngine(TOKENIZER, context=64), [0], [prompt], 2, sampling)


def test_the_rollout_is_the_solution_and_the_end_token():
    block = play(SOLUTION)
    tokens = block.tokens[: block.offsets[1]].tolist()
    assert tokens == [*TOKENIZER.encode(SOLUTION), TOKENIZER.eos_token_id]
    assert block.texts == (SOLUTION, SOLUTION)
    assert block.finish.tolist() == [Finish.STOP] * 2 and not block.logprobs.any()


def test_a_prompt_without_a_solution_is_refused():
    with pytest.raises(ConfigError, match="sums/train/0 has no solution to play back"):
        play("")


def test_a_solution_is_never_cut():
    exact = len(TOKENIZER.encode(SOLUTION)) + 1
    assert play(SOLUTION, max_new_tokens=exact).lengths.tolist() == [exact] * 2
    with pytest.raises(ConfigError, match=f"room for {exact - 1} tokens, allowed: {exact} or more"):
        play(SOLUTION, max_new_tokens=exact - 1)
