"""The worked example of `records.py` as columns."""

from __future__ import annotations

import pytest

from orchestrator.errors import PromptTooLongError
from orchestrator.training.records import Finish, Prompt, SamplingParams
from orchestrator.training.rollouts.blocks import Response, assemble_block, require_room
from orchestrator.training.rollouts.engine import GenerateRequest

PROMPTS = (Prompt("a/0", "1+2=", {}), Prompt("a/1", "5-5=", {}))
REQUEST = GenerateRequest([3, 4], PROMPTS, 2, SamplingParams(1.0, 1.0, 8, 0))


def test_columns_of_the_worked_example():
    responses = [
        Response([3, 0], [-0.5, -0.1], Finish.STOP),
        Response([4, 0], [-0.9, -0.2], Finish.STOP),
        Response([0, 0], [-0.3, -0.3], Finish.STOP),
        Response([1, 0, 9], [-0.7, -0.4, -2.0], Finish.LENGTH),
    ]
    block = assemble_block(
        REQUEST, [[1, 11, 2], [5, 12]], responses, 6, 10, lambda rows: tuple(str(row) for row in rows)
    )
    assert block.offsets.tolist() == [0, 2, 4, 6, 9] and block.lengths.tolist() == [2, 2, 2, 3]
    assert block.prompt_offsets.tolist() == [0, 3, 5] and block.prompt_tokens.tolist() == [1, 11, 2, 5, 12]
    assert block.tokens.tolist() == [3, 0, 4, 0, 0, 0, 1, 0, 9]
    assert block.logprobs[-1] == -2.0 and block.versions.tolist() == [6] * 9
    assert block.finish.tolist() == [0, 0, 0, 1] and block.texts[3] == "[1, 0, 9]"


def test_blocks_have_prefills_and_limits_of_each_prompt():
    """The context holds 10 tokens, so a prompt of 3 tokens leaves room for 7
    rather than for `max_new_tokens`, 8.
    """
    responses = [Response([0], [0.0], Finish.STOP)] * 4
    prompts = [[1, 11, 2], [5]]
    block = assemble_block(
        REQUEST, prompts, responses, 0, 10, lambda rows: ("",) * 4, prefills=["<think>", ""]
    )
    assert block.limits is not None and block.limits.tolist() == [7, 8]
    assert [block.prefill(rollout) for rollout in range(4)] == ["<think>", "<think>", "", ""]
    plain = assemble_block(REQUEST, prompts, responses, 0, 10, lambda rows: ("",) * 4, prefills=["", ""])
    assert plain.prefills == () and plain.prefill(3) == ""


def test_a_missing_response_is_an_error():
    with pytest.raises(ValueError, match="3 responses and 2 prompts for 4 rollouts"):
        assemble_block(REQUEST, [[1], [2]], [Response([0], [0.0], Finish.STOP)] * 3, 0, 10, lambda rows: ())


def test_a_prompt_needs_room_for_one_token():
    require_room(PROMPTS[0], length=7, context=8)
    with pytest.raises(PromptTooLongError, match=r"a/0: .* allowed: at most 7 \(model.context is 8\)"):
        require_room(PROMPTS[0], length=8, context=8)
