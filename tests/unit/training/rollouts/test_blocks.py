"""The worked example of `records.py` as columns."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.errors import PromptTooLongError
from orchestrator.training.records import Finish, Prompt, SamplingParams
from orchestrator.training.rollouts.blocks import assemble_block, require_room
from orchestrator.training.rollouts.engine import Response, SampledGroup, SampleRequest

PROMPTS = (Prompt("a/0", "1+2=", {}), Prompt("a/1", "5-5=", {}))
SAMPLING = SamplingParams(1.0, 1.0, 8, 0)


def response(tokens: list[int], logprobs: list[float], finish: Finish = Finish.STOP) -> Response:
    return Response(
        np.array(tokens, dtype=np.int32),
        np.array(logprobs, dtype=np.float32),
        np.full(len(tokens), 6, dtype=np.int32),
        finish,
        str(tokens),
    )


def group(index: int, prompt: list[int], *responses: Response, limit: int, prefill: str = "") -> SampledGroup:
    request = SampleRequest(3 + index, PROMPTS[index], 2, SAMPLING)
    return SampledGroup(request, prompt, responses, limit, prefill=prefill)


def test_columns_of_the_worked_example():
    first = group(0, [1, 11, 2], response([3, 0], [-0.5, -0.1]), response([4, 0], [-0.9, -0.2]), limit=7)
    longest = response([1, 0, 9], [-0.7, -0.4, -2.0], Finish.LENGTH)
    second = group(1, [5, 12], response([0, 0], [-0.3, -0.3]), longest, limit=8)
    block = assemble_block([first, second])
    assert block.group_ids.tolist() == [3, 4] and block.prompts == PROMPTS and block.group_size == 2
    assert block.offsets.tolist() == [0, 2, 4, 6, 9] and block.lengths.tolist() == [2, 2, 2, 3]
    assert block.prompt_offsets.tolist() == [0, 3, 5] and block.prompt_tokens.tolist() == [1, 11, 2, 5, 12]
    assert block.tokens.tolist() == [3, 0, 4, 0, 0, 0, 1, 0, 9]
    assert block.logprobs[-1] == -2.0 and block.versions.tolist() == [6] * 9
    assert block.finish.tolist() == [0, 0, 0, 1] and block.texts[3] == "[1, 0, 9]"
    assert block.limits is not None and block.limits.tolist() == [7, 8]


def test_blocks_have_the_prefill_of_each_prompt():
    end = response([0], [0.0])
    opened, plain = group(0, [1], end, end, limit=8, prefill="<think>"), group(1, [5], end, end, limit=8)
    block = assemble_block([opened, plain])
    assert [block.prefill(rollout) for rollout in range(4)] == ["<think>", "<think>", "", ""]
    block = assemble_block([plain])
    assert block.prefills == () and block.prefill(1) == ""


def test_a_missing_response_is_an_error():
    with pytest.raises(ValueError, match="group 3 has 1 responses; the block's groups have 2"):
        assemble_block([group(0, [1], response([0], [0.0]), limit=8)])


def test_a_prompt_needs_room_for_one_token():
    require_room(PROMPTS[0], length=7, context=8)
    with pytest.raises(PromptTooLongError, match=r"a/0: .* allowed: at most 7 \(model.context is 8\)"):
        require_room(PROMPTS[0], length=8, context=8)
