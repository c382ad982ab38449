"""The fake of the Engine port: deterministic rollouts without a model, for tests and simulations."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from orchestrator.training.records import Finish, Prompt, RolloutBlock, SamplingParams, WeightVersion
from orchestrator.training.rollouts.blocks import (
    Response,
    assemble_block,
    require_room,
    room_for_response,
)
from orchestrator.training.rollouts.engine import GenerateRequest, NamedTensor

END = 0
"""The end-of-sequence token; every other token is the code point of its character."""


class ScriptedEngine:
    """An `Engine` that draws each response from `script`, by the seed, the group's id and the member's index.

    `script` maps a prompt's text to its possible responses; a prompt without an entry gets a number
    below 12. Temperature 0 always takes the first response. A response longer than `max_new_tokens` is
    cut (Finish.LENGTH). The log-prob of every token is `-1 / (2 + version)`, which changes when
    weights are loaded.
    """

    def __init__(self, context: int, script: dict[str, Sequence[str]] | None = None) -> None:
        self._context, self._script = context, script or {}
        self._version: WeightVersion = 0

    def generate(self, request: GenerateRequest) -> RolloutBlock:
        """The scripted responses. Raises PromptTooLongError like any engine."""
        prompt_tokens = [[ord(character) for character in prompt.text] for prompt in request.prompts]
        responses: list[Response] = []
        for group_id, prompt, rendered in zip(request.group_ids, request.prompts, prompt_tokens, strict=True):
            require_room(prompt, len(rendered), self._context)
            room = room_for_response(len(rendered), request.sampling.max_new_tokens, self._context)
            members = range(request.group_size)
            responses += [
                self._respond(prompt, request.sampling, f"{group_id}/{member}", room) for member in members
            ]
        return assemble_block(request, prompt_tokens, responses, self._version, self._context, _decode)

    def load_weights(self, version: WeightVersion, tensors: Iterable[NamedTensor]) -> None:
        """Tokens from here on carry `version`; the tensors are read to their end and dropped."""
        for _ in tensors:
            pass
        self._version = version

    def weight_storage(self, name: str) -> None:
        """It has no weights."""

    def weights_written(self, version: WeightVersion) -> None:
        """Tokens from here on carry `version`."""
        self._version = version

    def _respond(self, prompt: Prompt, sampling: SamplingParams, rollout: str, room: int) -> Response:
        choices = self._script.get(prompt.text, [str(number) for number in range(12)])
        chosen = (
            0
            if sampling.temperature == 0
            else random.Random(f"{sampling.seed}/{rollout}").randrange(len(choices))
        )
        tokens = [*(ord(character) for character in choices[chosen]), END]
        finish = Finish.STOP if len(tokens) <= room else Finish.LENGTH
        tokens = tokens[:room]
        return Response(tokens, [-1 / (2 + self._version)] * len(tokens), finish)


def _decode(rows: Sequence[Sequence[int]]) -> tuple[str, ...]:
    return tuple("".join(chr(token) for token in row if token != END) for row in rows)
