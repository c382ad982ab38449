"""The fake of the Engine port: deterministic rollouts without a model, for tests and simulations."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import numpy as np

from orchestrator.training.records import Finish, WeightVersion
from orchestrator.training.rollouts.blocks import require_room, room_for_response
from orchestrator.training.rollouts.engine import Response, SampledGroup, SampleRequest
from orchestrator.training.tensors.buckets import Bucket

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

    async def sample(self, request: SampleRequest) -> SampledGroup:
        """The scripted responses. Raises PromptTooLongError like any engine."""
        tokens = [ord(character) for character in request.prompt.text]
        require_room(request.prompt, len(tokens), self._context)
        room = room_for_response(len(tokens), request.sampling.max_new_tokens, self._context)
        responses = tuple(self._respond(request, member, room) for member in range(request.group_size))
        return SampledGroup(request, tokens, responses, room)

    async def update_weights(
        self, version: WeightVersion, buckets: Iterable[Bucket], *, recompute: bool
    ) -> None:
        """Tokens from here on carry `version`; the weights are read to their end and dropped."""
        for _ in buckets:
            pass
        self._version = version

    def _respond(self, request: SampleRequest, member: int, room: int) -> Response:
        choices = self._script.get(request.prompt.text, [str(number) for number in range(12)])
        draws = random.Random(f"{request.sampling.seed}/{request.group_id}/{member}")
        chosen = 0 if request.sampling.temperature == 0 else draws.randrange(len(choices))
        tokens = [*(ord(character) for character in choices[chosen]), END]
        finish = Finish.STOP if len(tokens) <= room else Finish.LENGTH
        tokens = tokens[:room]
        return Response(
            tokens=np.array(tokens, dtype=np.int32),
            logprobs=np.full(len(tokens), -1 / (2 + self._version), dtype=np.float32),
            versions=np.full(len(tokens), self._version, dtype=np.int32),
            finish=finish,
            text="".join(chr(token) for token in tokens if token != END),
        )
