"""Plays back the task's worked solutions as if the model had written them.

A cold start (supervised fine-tuning) is then an ordinary run: the same loop, buffer and learner, with the
loss `nll`, whose gradient needs neither rewards nor log-probs of the sampler.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers import PreTrainedTokenizerFast

from orchestrator.errors import ConfigError
from orchestrator.training.models.build import build_tokenizer
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.prompts.chat_template import (
    decode_responses,
    encode_text,
    end_of_turn,
    render_all,
    stop_tokens,
    without_prefill,
)
from orchestrator.training.records import Finish, Prompt, RolloutBlock, WeightVersion
from orchestrator.training.rollouts.blocks import (
    Response,
    assemble_block,
    require_room,
    room_for_response,
)
from orchestrator.training.rollouts.config import RolloutConfig
from orchestrator.training.rollouts.engine import GenerateRequest, NamedTensor


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

    def generate(self, request: GenerateRequest) -> RolloutBlock:
        """The solutions, each `group_size` times. Raises ConfigError for a prompt without one, or with one
        that is too long.
        """
        prompts = list(render_all(self._tokenizer, [prompt.text for prompt in request.prompts]))
        responses: list[Response] = []
        for prompt, rendered in zip(request.prompts, prompts, strict=True):
            length = len(rendered.tokens)
            require_room(prompt, length, self._context)
            room = room_for_response(length, request.sampling.max_new_tokens, self._context)
            responses += [self._play_back(prompt, rendered.prefill, room)] * request.group_size
        return assemble_block(
            request,
            [rendered.tokens for rendered in prompts],
            responses,
            self._version,
            self._context,
            lambda rows: decode_responses(self._tokenizer, rows, self._stops),
            prefills=[rendered.prefill for rendered in prompts],
        )

    def load_weights(self, version: WeightVersion, tensors: Iterable[NamedTensor]) -> None:
        """Tokens from now on carry `version`; the tensors are read to the end and dropped."""
        for _ in tensors:
            pass
        self._version = version

    def weight_storage(self, name: str) -> None:
        """It has no weights."""

    def weights_written(self, version: WeightVersion) -> None:
        """Tokens from now on carry `version`."""
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
        return Response(tokens, [0.0] * len(tokens), Finish.STOP)


def build(
    model: ModelConfig, rollout: RolloutConfig, device: torch.device, seed: int
) -> WorkedSolutionsEngine:
    return WorkedSolutionsEngine(build_tokenizer(model), model.context)
