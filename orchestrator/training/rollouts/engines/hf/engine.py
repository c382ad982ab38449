"""The embedded engine: samples from any causal language model of transformers, on CPU and GPU.

Three things make it faster than `generate`. A prompt is prefilled once for its whole group. A finished row
leaves the batch and the cache in the step it finishes, and the next groups take its place (continuous
batching). Masks and buffers are prepared once, so that a step is the model's forward, one softmax and one
search in its cumulative sum.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Set
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from orchestrator.errors import ConfigError
from orchestrator.training.models.build import build_model, build_tokenizer, read_architecture
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.models.latent_attention import decode_in_latent_space
from orchestrator.training.models.routers import RouteRecorder
from orchestrator.training.prompts.chat_template import decode_responses, render_all, stop_tokens
from orchestrator.training.records import Finish, RolloutBlock, SamplingParams, WeightVersion
from orchestrator.training.rollouts.blocks import (
    Response,
    assemble_block,
    require_room,
    room_for_response,
)
from orchestrator.training.rollouts.config import RolloutConfig
from orchestrator.training.rollouts.engine import GenerateRequest, NamedTensor
from orchestrator.training.rollouts.engines.hf.slots import SlotCache
from orchestrator.training.rollouts.penalties import Penalties
from orchestrator.training.rollouts.sampling import sample, uniform_draws
from orchestrator.training.rollouts.stop_strings import StopStrings


class HFEngine:
    """An `Engine` over a transformers model in which every token attends to all tokens before it."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        context: int,
        max_batch_rows: int,
        device: torch.device,
        record_routes: bool,
    ) -> None:
        _require_full_attention(model.config, context)
        decode_in_latent_space(model)
        self._recorder = (RouteRecorder(model) or None) if record_routes else None
        self._model = model.to(device).eval()  # pyright: ignore[reportArgumentType]
        self._tokenizer, self._device = tokenizer, device
        self._context, self._max_rows = context, max_batch_rows
        self._stops = stop_tokens(tokenizer, _declared_stops(model))
        self._weights: dict[str, torch.Tensor] = dict(self._model.state_dict(keep_vars=True))
        self._places = {name: tensor.data_ptr() for name, tensor in self._weights.items()}
        self._version: WeightVersion = 0

    @torch.inference_mode()
    def generate(self, request: GenerateRequest) -> RolloutBlock:
        """Sample to the end. A rollout ends at a stop token or stop string, at `max_new_tokens` or where the
        context is full, whichever is first.
        """
        rendered = list(render_all(self._tokenizer, [prompt.text for prompt in request.prompts]))
        prompts = [each.tokens for each in rendered]
        for prompt, tokens in zip(request.prompts, prompts, strict=True):
            require_room(prompt, len(tokens), self._context)
        ends = self._stops.union(request.sampling.stop_token_ids)
        batch = _Batch(
            self._model,
            prompts,
            request,
            self._context,
            self._max_rows,
            sorted(ends),
            self._device,
            self._recorder,
            self._stop_strings(request, ends),
        )
        batch.run()
        return assemble_block(
            request,
            prompts,
            batch.responses(),
            self._version,
            self._context,
            lambda rows: decode_responses(self._tokenizer, rows, ends),
            prefills=[each.prefill for each in rendered],
            prompt_routes=batch.prompt_routes(),
        )

    def _stop_strings(self, request: GenerateRequest, ends: Set[int]) -> StopStrings | None:
        if not request.sampling.stop:
            return None
        rollouts = len(request.prompts) * request.group_size
        return StopStrings(self._tokenizer, request.sampling, ends, rollouts)

    @torch.no_grad()
    def load_weights(self, version: WeightVersion, tensors: Iterable[NamedTensor]) -> None:
        """Copy parameters and persistent buffers in place, by their names in the
        model's `state_dict`, as they arrive.

        Raises ValueError for an unknown name, a wrong shape, or a weight that never came (a tied weight may
        come under either name).
        """
        loaded: set[int] = set()
        for name, tensor in tensors:
            own = self._weights.get(name)
            if own is None or own.shape != tensor.shape:
                raise ValueError(f"the model has no weight {name!r} of shape {tuple(tensor.shape)}")
            place = self._places[name]
            if tensor.data_ptr() != place:  # it may have been put together in place
                own.copy_(tensor)
            loaded.add(place)
        missing = [name for name, place in self._places.items() if place not in loaded]
        if missing:
            raise ValueError(f"version {version} lacks {len(missing)} weights, among them {missing[0]!r}")
        self._version = version

    def weight_storage(self, name: str) -> torch.Tensor | None:
        """The parameter or buffer itself, because the forward pass reads it directly and caches nothing."""
        return self._weights.get(name)

    def weights_written(self, version: WeightVersion) -> None:
        """See `Engine`."""
        self._version = version


@dataclass(frozen=True, slots=True)
class _Admission:
    """Consecutive rollouts `first .. first + count - 1` of one prompt, to be prefilled together."""

    prompt: int
    first: int
    count: int


class _Batch:
    """One request in progress: the rollouts that wait, those in slots, and their tokens so far."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: list[list[int]],
        request: GenerateRequest,
        context: int,
        max_rows: int,
        ends: list[int],
        device: torch.device,
        recorder: RouteRecorder | None,
        stop_strings: StopStrings | None,
    ) -> None:
        self._model, self._prompts, self._device = model, prompts, device
        self._sampling: SamplingParams = request.sampling
        total = len(prompts) * request.group_size
        rows = min(max_rows, total)
        self._waiting = deque(_admissions(prompts, request.group_size, rows))
        self._ends, self._stop_strings = torch.tensor(ends), stop_strings
        self._penalties = Penalties.of(request.sampling, prompts, request.group_size, ends, device)
        self._draws = uniform_draws(
            request.sampling.seed, request.group_ids, request.group_size, request.sampling.max_new_tokens
        )
        room = torch.tensor(
            [room_for_response(len(prompt), request.sampling.max_new_tokens, context) for prompt in prompts]
        )
        self._limits = room.repeat_interleave(request.group_size)  # [N]
        self._tokens = torch.zeros(total, request.sampling.max_new_tokens, dtype=torch.int64)
        self._logprobs = torch.zeros(total, request.sampling.max_new_tokens)
        self._lengths = torch.zeros(total, dtype=torch.int64)
        self._stopped = torch.zeros(total, dtype=torch.bool)
        self._rollouts = torch.zeros(0, dtype=torch.int64)  # which rollout each slot holds
        self._recorder = recorder
        self._routes = torch.zeros(0)  # [N, max_new_tokens, R, k] int16 once the first prompt was read
        self._prompt_routes: dict[int, torch.Tensor] = {}  # by prompt: [length, R, k]
        self._cache = SlotCache(model.config.num_hidden_layers, rows, next(model.parameters()).dtype, device)

    def run(self) -> None:
        """Sample until no rollout waits and no slot is occupied."""
        while self._waiting or self._cache.rows:
            if self._waiting and self._worth_admitting():
                self._admit()
            else:
                self._step()

    def responses(self) -> list[Response]:
        """The finished rollouts in the request's order."""
        lengths = self._lengths.tolist()
        finish = [Finish.STOP if stopped else Finish.LENGTH for stopped in self._stopped.tolist()]
        tokens, logprobs = self._tokens.tolist(), self._logprobs.tolist()
        return [
            Response(
                tokens[i][:length],
                logprobs[i][:length],
                finish[i],
                self._routes_of(i, length),
                None if self._stop_strings is None else self._stop_strings.text(i),
            )
            for i, length in enumerate(lengths)
        ]

    def prompt_routes(self) -> list[NDArray[np.int16]] | None:
        """The routes of each prompt, [length, R, k]; None if routes are not recorded."""
        if self._recorder is None:
            return None
        return [self._prompt_routes[prompt].numpy() for prompt in range(len(self._prompts))]

    def _routes_of(self, rollout: int, length: int) -> NDArray[np.int16] | None:
        return None if self._recorder is None else self._routes[rollout, :length].numpy()

    def _worth_admitting(self) -> bool:
        """A prefill costs about a step however few its rows, so it waits until
        an eighth of the slots is free.
        """
        free = self._cache.slots - self._cache.rows
        return free >= self._waiting[0].count and free >= self._cache.slots // 8

    def _admit(self) -> None:
        """Prefill as many waiting prompts as fit and sample the first token of their rollouts."""
        free = self._cache.slots - self._cache.rows
        admitted: list[_Admission] = []
        while self._waiting and self._waiting[0].count <= free:
            admitted.append(self._waiting.popleft())
            free -= admitted[-1].count
        prompts = [self._prompts[admission.prompt] for admission in admitted]
        repeats = torch.tensor([admission.count for admission in admitted])
        logits, prefilled = self._prefill(prompts)
        if self._recorder is not None:
            self._note_prompts(admitted, self._recorder.take())
        self._cache.insert(prefilled, torch.tensor([len(prompt) for prompt in prompts]), repeats)
        new = torch.cat(
            [torch.arange(admission.first, admission.first + admission.count) for admission in admitted]
        )
        self._rollouts = torch.cat([self._rollouts, new])
        self._accept(
            slice(len(self._rollouts) - len(new), None),
            logits.repeat_interleave(repeats.to(self._device), dim=0),
        )

    def _note_prompts(self, admitted: list[_Admission], taken: torch.Tensor) -> None:
        """The routes [p * width, R, k] of left-padded prompts."""
        by_prompt = taken.view(len(admitted), -1, *taken.shape[1:])
        for admission, routes in zip(admitted, by_prompt, strict=True):
            self._prompt_routes[admission.prompt] = routes[-len(self._prompts[admission.prompt]) :]
        if self._routes.ndim == 1:
            self._routes = torch.full((*self._tokens.shape, *taken.shape[1:]), -1, dtype=torch.int16)

    def _prefill(self, prompts: list[list[int]]) -> tuple[torch.Tensor, DynamicCache]:
        """The logits after each prompt [p, V] and the keys and values of the prompts, left-padded."""
        width = max(len(prompt) for prompt in prompts)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        columns = torch.arange(width)
        starts = (width - lengths)[:, None]
        # A padding column sees itself, so that its softmax is defined; nothing else sees it.
        visible = (columns[:, None] >= columns) & (
            (columns >= starts)[:, None] | torch.eye(width, dtype=torch.bool)
        )
        cache = DynamicCache(config=self._model.config)
        output = self._model(
            input_ids=ids.to(self._device),
            attention_mask=_additive(visible, next(self._model.parameters()).dtype).to(self._device)[:, None],
            position_ids=(columns - starts).clamp(min=0).to(self._device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1], cache

    def _step(self) -> None:
        """One token for every row."""
        rollouts = self._rollouts
        newest = self._tokens[rollouts, self._lengths[rollouts] - 1]
        mask = self._cache.open_column()
        output = self._model(
            input_ids=newest[:, None].to(self._device),
            attention_mask=mask,
            position_ids=self._cache.positions()[:, None].to(self._device),
            past_key_values=self._cache,
            use_cache=True,
        )
        if self._recorder is not None:
            self._routes[rollouts, self._lengths[rollouts] - 1] = self._recorder.take()
        self._accept(slice(0, None), output.logits[:, -1])

    def _accept(self, slots: slice, logits: torch.Tensor) -> None:
        """Sample a token for the rows in `slots`, store it, and drop the rows that it finishes."""
        rollouts = self._rollouts[slots]
        places = self._lengths[rollouts]
        penalties = self._penalties
        penalised = None if penalties is None else penalties.apply(logits, rollouts, places)
        draws = self._draws[rollouts, places].to(self._device)
        tokens, logprobs = sample(logits, draws, self._sampling, penalised)
        if penalties is not None:
            penalties.note(rollouts, places, tokens)
        tokens, logprobs = tokens.cpu(), logprobs.cpu()
        self._tokens[rollouts, places] = tokens
        self._logprobs[rollouts, places] = logprobs
        self._lengths[rollouts] = places + 1
        stopped = torch.isin(tokens, self._ends)
        if self._stop_strings is not None:
            stopped |= torch.tensor(self._stop_strings.completed(rollouts.tolist(), tokens.tolist()))
        self._stopped[rollouts] = stopped
        finished = torch.zeros(len(self._rollouts), dtype=torch.bool)
        finished[slots] = stopped | (places + 1 >= self._limits[rollouts])
        if finished.any():
            self._rollouts = self._rollouts[self._cache.drop(finished)]


def _admissions(prompts: list[list[int]], group_size: int, rows: int) -> list[_Admission]:
    """Whole groups where they fit into `rows`, parts of groups otherwise; long prompts first, so that prompts
    of about one length are prefilled together.
    """
    return [
        _Admission(prompt, prompt * group_size + member, min(rows, group_size - member))
        for prompt in sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        for member in range(0, group_size, rows)
    ]


def _additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)


def _declared_stops(model: PreTrainedModel) -> int | list[int] | None:
    """The stop tokens that the model's own generation config adds to the tokenizer's."""
    return model.generation_config.eos_token_id


def _require_full_attention(architecture: PreTrainedConfig, context: int) -> None:
    """Raise ConfigError unless every token of a sequence of `context` tokens attends to all tokens before it.
    A window of at least `context` tokens never slides.
    """
    text = architecture.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or [])
    if getattr(text, "num_attention_heads", None) is None:
        raise _refused(architecture, "it has no attention")
    windows = {
        "sliding_attention": getattr(text, "sliding_window", None),
        "chunked_attention": getattr(text, "attention_chunk_size", None),
    }
    if (
        not kinds and windows["sliding_attention"] is not None
    ):  # e.g. Mistral: all layers alike, no layer_types
        kinds = {"sliding_attention"}
    for kind in sorted(kinds - {"full_attention"}):
        window = windows.get(kind)
        if window is None:
            raise _refused(architecture, f"it has layers of the kind {kind}")
        if window < context:
            raise _refused(
                architecture,
                f"the window of its layers of the kind {kind} is {window} tokens; "
                f"model.context={window} or less never slides",
            )


def _refused(architecture: PreTrainedConfig, reason: str) -> ConfigError:
    return ConfigError(
        "rollout.engine",
        "hf",
        "an engine that can sample from this model",
        f"{architecture.model_type}: {reason}; the engine hf needs full attention in every layer",
    )


def check(model: ModelConfig) -> None:
    """Raise ConfigError for a model that the engine can't serve, without reading its weights."""
    architecture = read_architecture(model)
    if architecture is not None:
        _require_full_attention(architecture, model.context)


def build(model: ModelConfig, rollout: RolloutConfig, device: torch.device, seed: int) -> HFEngine:
    """The engine with its own copy of the model, as version 0."""
    return HFEngine(
        build_model(model, seed),
        build_tokenizer(model),
        model.context,
        rollout.max_batch_rows,
        device,
        record_routes=rollout.record_routes,
    )
