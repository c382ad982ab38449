"""Plays back the task's worked solutions as if the model had written them.

A cold start (supervised fine-tuning) is then an ordinary run: the same loop, buffer and learner, with the
loss `nll`, whose gradient needs neither rewards nor log-probs of the sampler.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from orchestrator.errors import ConfigError
from orchestrator.training.models.build import build_tokenizer
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.prompts.chat_template import (
    decode_responses,
    encode_text,
    end_of_turn,
    render,
    stop_tokens,
    without_prefill,
)
from orchestrator.training.records import Finish, Prompt, WeightVersion
from orchestrator.training.rollouts.blocks import require_room, room_for_response
from orchestrator.training.rollouts.config import RolloutConfig
from orchestrator.training.rollouts.engine import Response, SampledGroup, SampleRequest
from orchestrator.training.tensors.buckets import Bucket


class WorkedSolutionsEngine:
    """An `Engine` whose rollouts are `prompt.solution` and the token that ends a turn, with log-prob 0 (they
    are certain) and Finish.STOP.

    It has no weights: a published version only marks the tokens that follow. Sampling parameters have no
    effect, except that a solution longer than `max_new_tokens` is refused: cut off, it would teach the model
    to stop in the middle.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, context: int) -> None:
        self._tokenizer, self._context = tokenizer, context
        self._end, self._stops = end_of_turn(tokenizer), stop_tokens(tokenizer)
        self._version: WeightVersion = 0

    async def sample(self, request: SampleRequest) -> SampledGroup:
        """The solution, `group_size` times. Raises ConfigError if there is none, or if it is too long."""
        rendered = render(self._tokenizer, request.prompt.text)
        length = len(rendered.tokens)
        require_room(request.prompt, length, self._context)
        room = room_for_response(length, request.sampling.max_new_tokens, self._context)
        response = self._play_back(request.prompt, rendered.prefill, room)
        return SampledGroup(
            request, rendered.tokens, (response,) * request.group_size, room, prefill=rendered.prefill
        )

    async def update_weights(
        self, version: WeightVersion, buckets: Iterable[Bucket], *, recompute: bool
    ) -> None:
        """Tokens from now on carry `version`; the weights are read to the end and dropped."""
        for _ in buckets:
            pass
        self._version = version

    def _play_back(self, prompt: Prompt, prefill: str, room: int) -> Response:
        if not prompt.solution:
            raise ConfigError(
                "task.solutions",
                "null",
                "a writer of worked solutions",
                f"{prompt.prompt_id} has no solution to play back",
            )
        solution = without_prefill(prompt.solution, prefill)
        tokens = [*encode_text(self._tokenizer, solution), self._end]
        if len(tokens) > room:
            raise ConfigError(
                "rollout.max_new_tokens",
                f"room for {room} tokens",
                f"{len(tokens)} or more",
                f"the solution of {prompt.prompt_id}",
            )
        return Response(
            tokens=np.array(tokens, dtype=np.int32),
            logprobs=np.zeros(len(tokens), dtype=np.float32),
            versions=np.full(len(tokens), self._version, dtype=np.int32),
            finish=Finish.STOP,
            text=decode_responses(self._tokenizer, [tokens], self._stops)[0],
        )


def build(
    model: ModelConfig, rollout: RolloutConfig, device: torch.device, seed: int
) -> WorkedSolutionsEngine:
    return WorkedSolutionsEngine(build_tokenizer(model), model.context)
