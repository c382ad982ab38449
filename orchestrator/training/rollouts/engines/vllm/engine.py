"""The engine `vllm`: an `Engine` over a running vLLM."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from orchestrator.training.models.build import build_model, build_tokenizer
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.prompts.chat_template import decode_responses, render, stop_tokens
from orchestrator.training.records import WeightVersion
from orchestrator.training.rollouts.blocks import require_room, room_for_response
from orchestrator.training.rollouts.config import RolloutConfig
from orchestrator.training.rollouts.engine import NamedTensor, Response, SampledGroup, SampleRequest
from orchestrator.training.rollouts.engines.vllm.launch import start_session
from orchestrator.training.rollouts.engines.vllm.model_folder import (
    declared_stops,
    model_folder,
    read_config,
)
from orchestrator.training.rollouts.engines.vllm.sampling import rollout_seed, vllm_parameters
from orchestrator.training.rollouts.engines.vllm.session import Rollout, VllmSession
from orchestrator.training.tensors.buckets import Bucket, unflatten


class VllmEngine:
    """An `Engine`. Belongs to one event loop.

    `initial` are the weights of version 0. They are only built if a group is sampled before the first update,
    because vLLM starts without weights.
    """

    def __init__(
        self,
        session: VllmSession,
        tokenizer: PreTrainedTokenizerFast,
        stops: frozenset[int],
        context: int,
        initial: Callable[[], Iterable[NamedTensor]],
    ) -> None:
        self._session, self._tokenizer, self._stops = session, tokenizer, stops
        self._context, self._initial = context, initial
        self._starting = asyncio.Lock()

    async def sample(self, request: SampleRequest) -> SampledGroup:
        """See `Engine`. Raises WorkerLostError if vLLM's processes died."""
        prompt, sampling = render(self._tokenizer, request.prompt.text), request.sampling
        require_room(request.prompt, len(prompt.tokens), self._context)
        room = room_for_response(len(prompt.tokens), sampling.max_new_tokens, self._context)
        ends = self._stops.union(sampling.stop_token_ids)
        seeds = [
            rollout_seed(sampling.seed, request.group_id, member) for member in range(request.group_size)
        ]
        async with self._starting:
            if self._session.version is None:
                await self._session.load(0, self._initial(), recompute=False)
        rollouts = await self._session.sample(
            prompt.tokens, [vllm_parameters(sampling, room, ends, seed) for seed in seeds]
        )
        texts = decode_responses(self._tokenizer, [rollout.tokens for rollout in rollouts], ends)
        responses = tuple(map(_response, rollouts, texts))
        return SampledGroup(request, prompt.tokens, responses, room, prompt.prefill)

    async def update_weights(
        self, version: WeightVersion, buckets: Iterable[Bucket], *, recompute: bool
    ) -> None:
        """See `Engine`. The engine samples on while the buckets are read."""
        await self._session.load(version, unflatten(buckets), recompute=recompute)


def _response(rollout: Rollout, text: str) -> Response:
    return Response(
        tokens=np.array(rollout.tokens, dtype=np.int32),
        logprobs=np.array(rollout.logprobs, dtype=np.float32),
        versions=np.array(rollout.versions, dtype=np.int32),
        finish=rollout.finish,
        text=text if rollout.text is None else rollout.text,
    )


def build(model: ModelConfig, rollout: RolloutConfig, device: torch.device, seed: int) -> VllmEngine:
    """Start vLLM, which takes about a minute on a busy machine."""
    architecture, tokenizer = read_config(model), build_tokenizer(model)
    with tempfile.TemporaryDirectory(prefix="vllm-") as scratch:
        folder = model_folder(model, architecture, tokenizer, Path(scratch))
        session = start_session(model, rollout, folder, device, seed)
    return VllmEngine(
        session,
        tokenizer,
        stop_tokens(tokenizer, declared_stops(model, architecture)),
        model.context,
        lambda: build_model(model, seed).state_dict().items(),
    )
