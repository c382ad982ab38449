"""Assembles the groups that an engine sampled into the columns of a `RolloutBlock`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import PromptTooLongError
from orchestrator.training.records import Prompt, RolloutBlock, SamplingParams
from orchestrator.training.rollouts.engine import Engine, Response, SampledGroup, SampleRequest


def assemble_block(groups: Sequence[SampledGroup]) -> RolloutBlock:
    """The block of P >= 1 groups of the same size, in order: rollout `i` belongs to group
    `i // group_size`. If one response has routes, all must have them. Raises ValueError if the sizes differ.
    """
    size = groups[0].request.group_size
    for group in groups:
        if not len(group.responses) == group.request.group_size == size:
            raise ValueError(
                f"group {group.request.group_id} has {len(group.responses)} responses; the block's groups "
                f"have {size}"
            )
    responses = [response for group in groups for response in group.responses]
    prompt_routes = [group.prompt_routes for group in groups if group.prompt_routes is not None]
    routes = [response.routes for response in responses if response.routes is not None]
    prefills = tuple(group.prefill for group in groups)
    return RolloutBlock(
        group_ids=np.array([group.request.group_id for group in groups], dtype=np.int64),
        group_size=size,
        prompts=tuple(group.request.prompt for group in groups),
        prompt_tokens=np.concatenate([np.asarray(group.prompt_tokens, dtype=np.int32) for group in groups]),
        prompt_offsets=_offsets([len(group.prompt_tokens) for group in groups]),
        tokens=np.concatenate([response.tokens for response in responses]),
        offsets=_offsets([len(response.tokens) for response in responses]),
        logprobs=np.concatenate([response.logprobs for response in responses]),
        versions=np.concatenate([response.versions for response in responses]),
        trainable=np.concatenate([_sampled(response) for response in responses]),
        finish=np.array([response.finish for response in responses], dtype=np.uint8),
        texts=tuple(response.text for response in responses),
        prompt_routes=np.concatenate(prompt_routes) if prompt_routes else None,
        routes=np.concatenate(routes) if prompt_routes else None,
        prefills=prefills if any(prefills) else (),
        limits=np.array([group.limit for group in groups], dtype=np.int32),
    )


async def sample_block(
    engine: Engine,
    group_ids: Sequence[int],
    prompts: Sequence[Prompt],
    group_size: int,
    sampling: SamplingParams,
) -> RolloutBlock:
    """Sample several groups together and wait for all of them. `group_ids` name the groups, one per prompt.
    Raises what `Engine.sample` raises for any of them.
    """
    tasks = [
        asyncio.ensure_future(engine.sample(SampleRequest(group_id, prompt, group_size, sampling)))
        for group_id, prompt in zip(group_ids, prompts, strict=True)
    ]
    try:
        return assemble_block(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def room_for_response(prompt_length: int, max_new_tokens: int, context: int) -> int:
    """The most tokens of a response to a prompt of `prompt_length` tokens."""
    return min(max_new_tokens, context - prompt_length)


def require_room(prompt: Prompt, length: int, context: int) -> None:
    """Raise PromptTooLongError unless `context` holds a prompt of `length` tokens and one more token."""
    if length >= context:
        raise PromptTooLongError(
            prompt.prompt_id,
            f"a prompt of {length} tokens",
            f"at most {context - 1} (model.context is {context})",
            "shorten the task's prompts or raise model.context",
        )


def _sampled(response: Response) -> NDArray[np.bool_]:
    return np.ones(len(response.tokens), dtype=np.bool_) if response.sampled is None else response.sampled


def _offsets(lengths: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
