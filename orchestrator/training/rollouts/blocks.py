"""Assembles the responses of an engine into the columns of a `RolloutBlock`."""

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
    """One rollout: token ids, the log-prob of each, and why it ended. All its tokens were sampled with one
    weight version.
    """

    tokens: Sequence[int]
    logprobs: Sequence[float]
    finish: Finish
    routes: NDArray[np.int16] | None = None  # [tokens, R, k]: see `RolloutBlock`
    text: str | None = None
    """Its text, if a stop string ended it; None: what its tokens decode to."""


def assemble_block(
    request: GenerateRequest,
    prompt_tokens: Sequence[Sequence[int]],
    responses: Sequence[Response],
    version: WeightVersion,
    context: int,
    decode: Callable[[Sequence[Sequence[int]]], tuple[str, ...]],
    *,
    prefills: Sequence[str] = (),
    prompt_routes: Sequence[NDArray[np.int16]] | None = None,
) -> RolloutBlock:
    """The block of P prompts and N = P * group_size responses, in the request's order: response `i` answers
    prompt `i // group_size`.

    `context` is the most tokens of prompt and response together. `decode` turns the tokens of all responses
    into their texts. `prefills` are the beginnings of answers that the prompts contain. `prompt_routes` are
    the recorded routes of the prompts; with them every response has routes. Raises ValueError if the counts
    don't fit the request.
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
        texts=_texts(responses, decode),
        prompt_routes=None if prompt_routes is None else np.concatenate(prompt_routes),
        routes=None
        if prompt_routes is None
        else np.concatenate([response.routes for response in responses if response.routes is not None]),
        prefills=tuple(prefills) if any(prefills) else (),
        limits=np.array(
            [
                room_for_response(len(tokens), request.sampling.max_new_tokens, context)
                for tokens in prompt_tokens
            ],
            dtype=np.int32,
        ),
    )


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


def _texts(
    responses: Sequence[Response], decode: Callable[[Sequence[Sequence[int]]], tuple[str, ...]]
) -> tuple[str, ...]:
    decoded = decode([response.tokens for response in responses])
    return tuple(
        text if response.text is None else response.text
        for response, text in zip(responses, decoded, strict=True)
    )


def _offsets(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum([len(row) for row in rows], dtype=np.int64)))
