"""From responses, as an engine makes them, to the columns of a `RolloutBlock`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import PromptTooLongError
from orchestrator.training.records import Finish, Prompt, RolloutBlock, WeightVersion
from orchestrator.training.rollouts.engine import GenerateRequest


@dataclass(frozen=True, slots=True)
class Response:
    """One rollout: token ids, the log-prob of each, and why it ended. All its tokens come from one weight
    version.
    """

    tokens: Sequence[int]
    logprobs: Sequence[float]
    finish: Finish
    routes: NDArray[np.int16] | None = None  # [tokens, R, k]: see `RolloutBlock`


def assemble_block(
    request: GenerateRequest,
    prompt_tokens: Sequence[Sequence[int]],
    responses: Sequence[Response],
    version: WeightVersion,
    decode: Callable[[Sequence[Sequence[int]]], tuple[str, ...]],
    prompt_routes: Sequence[NDArray[np.int16]] | None = None,
) -> RolloutBlock:
    """The block of P prompts and N = P * group_size responses, in the request's order: response `i` answers
    prompt `i // group_size`.

    `decode` turns all responses' tokens into their texts. `prompt_routes` are those of each prompt, where
    they were recorded; all responses have routes then. Raises ValueError if the counts don't fit the
    request.
    """
    expected = len(request.prompts) * request.group_size
    if len(responses) != expected or len(prompt_tokens) != len(request.prompts):
        raise ValueError(
            f"{len(responses)} responses and {len(prompt_tokens)} prompts for {expected} rollouts"
        )
    tokens = np.fromiter(chain.from_iterable(response.tokens for response in responses), dtype=np.int32)
    return RolloutBlock(
        group_ids=np.asarray(request.group_ids, dtype=np.int64),
        group_size=request.group_size,
        prompts=tuple(request.prompts),
        prompt_tokens=np.fromiter(chain.from_iterable(prompt_tokens), dtype=np.int32),
        prompt_offsets=_offsets(prompt_tokens),
        tokens=tokens,
        offsets=_offsets([response.tokens for response in responses]),
        logprobs=np.fromiter(
            chain.from_iterable(response.logprobs for response in responses), dtype=np.float32
        ),
        versions=np.full(len(tokens), version, dtype=np.int32),
        trainable=np.ones(len(tokens), dtype=np.bool_),
        finish=np.array([response.finish for response in responses], dtype=np.uint8),
        texts=decode([response.tokens for response in responses]),
        prompt_routes=None if prompt_routes is None else np.concatenate(prompt_routes),
        routes=None
        if prompt_routes is None
        else np.concatenate([response.routes for response in responses if response.routes is not None]),
    )


def require_room(prompt: Prompt, length: int, context: int) -> None:
    """Raise PromptTooLongError unless a prompt of `length` tokens leaves room for one more token in
    `context`.
    """
    if length >= context:
        raise PromptTooLongError(
            prompt.prompt_id,
            f"a prompt of {length} tokens",
            f"at most {context - 1} (model.context is {context})",
            "shorten the task's prompts or raise model.context",
        )


def _offsets(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum([len(row) for row in rows], dtype=np.int64)))
