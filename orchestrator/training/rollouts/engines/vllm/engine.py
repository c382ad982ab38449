"""The engine `vllm`: an `Engine` over a running vLLM."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedTokenizerFast

from orchestrator.training.models.build import build_model, build_tokenizer
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.prompts.chat_template import decode_responses, render_all, stop_tokens
from orchestrator.training.records import RolloutBlock, WeightVersion
from orchestrator.training.rollouts.blocks import Response, assemble_block, require_room, room_for_response
from orchestrator.training.rollouts.config import RolloutConfig
from orchestrator.training.rollouts.engine import GenerateRequest, NamedTensor
from orchestrator.training.rollouts.engines.vllm.launch import start_session
from orchestrator.training.rollouts.engines.vllm.model_folder import (
    declared_stops,
    model_folder,
    read_config,
)
from orchestrator.training.rollouts.engines.vllm.sampling import rollout_seed, vllm_parameters
from orchestrator.training.rollouts.engines.vllm.session import Rollout, VllmSession

T = TypeVar("T")


class VllmEngine:
    """An `Engine` that samples all groups of a request at the same time."""

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
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def generate(self, request: GenerateRequest) -> RolloutBlock:
        rendered = list(render_all(self._tokenizer, [prompt.text for prompt in request.prompts]))
        prompts = [each.tokens for each in rendered]
        for prompt, tokens in zip(request.prompts, prompts, strict=True):
            require_room(prompt, len(tokens), self._context)
        ends = self._stops.union(request.sampling.stop_token_ids)
        if self._session.version is None:
            self.load_weights(0, self._initial())
        rollouts = self._run(self._sample(request, prompts, ends))
        version = min(chain.from_iterable(r.versions for r in rollouts))
        return assemble_block(
            request,
            prompts,
            [Response(r.tokens, r.logprobs, r.finish, None, r.text) for r in rollouts],
            version,
            self._context,
            lambda rows: decode_responses(self._tokenizer, rows, ends),
            prefills=[each.prefill for each in rendered],
        )

    async def _sample(
        self, request: GenerateRequest, prompts: Sequence[Sequence[int]], ends: frozenset[int]
    ) -> list[Rollout]:
        sampling = request.sampling
        groups: list[Coroutine[Any, Any, list[Rollout]]] = []
        for group_id, tokens in zip(request.group_ids, prompts, strict=True):
            room = room_for_response(len(tokens), sampling.max_new_tokens, self._context)
            seeds = [rollout_seed(sampling.seed, group_id, member) for member in range(request.group_size)]
            parameters = [vllm_parameters(sampling, room, ends, seed) for seed in seeds]
            groups.append(self._session.sample(tokens, parameters))
        return list(chain.from_iterable(await asyncio.gather(*groups)))

    def load_weights(self, version: WeightVersion, tensors: Iterable[NamedTensor]) -> None:
        self._run(self._session.load(version, tensors, "finish"))

    def weight_storage(self, name: str) -> None:
        """vLLM stores weights in other forms."""

    def weights_written(self, version: WeightVersion) -> None:
        """Never called: see `weight_storage`."""

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def build(model: ModelConfig, rollout: RolloutConfig, device: torch.device, seed: int) -> VllmEngine:
    """Start vLLM. The model of version 0 is only built if no weights arrive before the first request."""
    architecture, tokenizer = read_config(model), build_tokenizer(model)
    with tempfile.TemporaryDirectory(prefix="vllm-") as scratch:
        folder = model_folder(model, architecture, tokenizer, Path(scratch))
        session = start_session(model, rollout, folder, device, seed)
    stops = stop_tokens(tokenizer, declared_stops(model, architecture))
    return VllmEngine(
        session,
        tokenizer,
        stops,
        model.context,
        lambda: build_model(model, seed).state_dict().items(),
    )
