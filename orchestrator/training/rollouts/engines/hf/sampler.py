"""Samples from any causal language model of transformers, on CPU and GPU, step by step.

Three things make it faster than `generate`. A prompt is read once for its whole group. A finished rollout
leaves the batch and the cache in the step in which it finishes, and rollouts of other groups take its place
(continuous batching). Masks and buffers are prepared once, so that a step is the model's forward, one softmax
and one search in its cumulative sum.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from orchestrator.training.models.latent_attention import decode_in_latent_space
from orchestrator.training.models.routers import RouteRecorder
from orchestrator.training.prompts.chat_template import RenderedPrompt, render, stop_tokens
from orchestrator.training.records import SamplingParams, WeightVersion
from orchestrator.training.rollouts.blocks import require_room, room_for_response
from orchestrator.training.rollouts.engine import NamedTensor, Response, SampledGroup, SampleRequest
from orchestrator.training.rollouts.engines.hf.attention import layer_kinds
from orchestrator.training.rollouts.engines.hf.rules import SamplingRules
from orchestrator.training.rollouts.engines.hf.slots import SlotCache
from orchestrator.training.rollouts.engines.hf.table import RolloutTable
from orchestrator.training.rollouts.sampling import uniform_draws

_RECOMPUTED_TOKENS = 16_384
"""The most tokens, with padding, that one forward pass recomputes."""


@dataclass(slots=True)
class _Group:
    """A group in progress."""

    ticket: int
    request: SampleRequest
    prompt: RenderedPrompt
    limit: int
    rules: SamplingRules
    responses: dict[int, Response] = field(default_factory=dict[int, Response])
    """Finished responses, by member."""
    prompt_routes: torch.Tensor | None = None  # [length, R, k]

    def result(self) -> SampledGroup:
        return SampledGroup(
            request=self.request,
            prompt_tokens=self.prompt.tokens,
            responses=tuple(self.responses[member] for member in range(self.request.group_size)),
            limit=self.limit,
            prefill=self.prompt.prefill,
            prompt_routes=None if self.prompt_routes is None else self.prompt_routes.numpy(),
        )


@dataclass(frozen=True, slots=True, order=True)
class _Waiting:
    """Members of a group that are started together. Of those that arrived between the same two steps, the
    ones that will take longest come first; among similar ones, prompts of about one length are read together.
    """

    turn: int
    minus_magnitude: int
    """Of the expected number of tokens, as a power of two."""
    minus_length: int
    ticket: int
    first: int
    group: _Group = field(compare=False)
    members: range = field(compare=False)


@dataclass(frozen=True, slots=True)
class _Rollout:
    """The rollout in a row of the table."""

    group: _Group
    member: int


class HFSampler:
    """A `StepSampler` over a transformers model whose layers are all attention, full or with a window."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        context: int,
        max_batch_rows: int,
        device: torch.device,
        record_routes: bool,
    ) -> None:
        self._kinds = layer_kinds(model.config, context)
        decode_in_latent_space(model)
        self._recorder = (RouteRecorder(model) or None) if record_routes else None
        self._model = model.to(device).eval()  # pyright: ignore[reportArgumentType]
        self._dtype = next(model.parameters()).dtype
        self._tokenizer, self._device, self._context = tokenizer, device, context
        self._stops = stop_tokens(tokenizer, model.generation_config.eos_token_id)
        self._weights: dict[str, torch.Tensor] = dict(self._model.state_dict(keep_vars=True))
        self._places = {name: tensor.data_ptr() for name, tensor in self._weights.items()}
        self._version: WeightVersion = 0
        self._rules: dict[SamplingParams, SamplingRules] = {}
        self._active: Counter[SamplingParams] = Counter()
        """Number of groups in progress, by their parameters."""
        self._groups: dict[int, _Group] = {}
        self._waiting: list[_Waiting] = []
        self._turn = 0
        self._table = RolloutTable(max_batch_rows)
        self._rollouts: dict[int, _Rollout] = {}
        """The rollouts in progress, by their row of the table."""
        self._rows = torch.zeros(0, dtype=torch.int64)
        """The row of the table that each slot of the cache holds."""
        self._cache = SlotCache(model.config.num_hidden_layers, max_batch_rows, self._dtype, device)

    # -- groups

    @property
    def running(self) -> int:
        """Number of rollouts in the batch."""
        return len(self._rows)

    def submit(self, ticket: int, request: SampleRequest) -> None:
        """See `StepSampler`. A rollout ends at a stop token or stop string, at `max_new_tokens` or where the
        context is full, whichever is first.
        """
        prompt, sampling = render(self._tokenizer, request.prompt.text), request.sampling
        length = len(prompt.tokens)
        require_room(request.prompt, length, self._context)
        limit = room_for_response(length, sampling.max_new_tokens, self._context)
        group = _Group(ticket, request, prompt, limit, self._rules_of(sampling))
        self._groups[ticket] = group
        self._active[sampling] += 1
        slots, magnitude = self._cache.slots, request.expected_tokens.bit_length()
        for first in range(0, request.group_size, slots):
            members = range(first, min(first + slots, request.group_size))
            waiting = _Waiting(self._turn, -magnitude, -length, ticket, first, group, members)
            bisect.insort(self._waiting, waiting)

    @torch.inference_mode()
    def abort(self, ticket: int) -> None:
        """See `StepSampler`."""
        group = self._groups.get(ticket)
        if group is None:
            return
        self._waiting = [waiting for waiting in self._waiting if waiting.ticket != ticket]
        aborted = torch.tensor([self._rollouts[row].group is group for row in self._rows.tolist()])
        if aborted.any():
            for row in self._drop(aborted):
                self._table.release(row)
        self._forget(group)

    @torch.inference_mode()
    def step(self) -> Sequence[tuple[int, SampledGroup]]:
        """See `StepSampler`."""
        self._turn += 1
        if self._waiting and self._worth_admitting():
            finished = self._admit()
        elif self.running:
            finished = self._decode()
        else:
            return ()
        return [(group.ticket, group.result()) for group in self._finish(finished)]

    def _rules_of(self, sampling: SamplingParams) -> SamplingRules:
        if sampling not in self._rules:
            slots = self._cache.slots
            self._rules[sampling] = SamplingRules(sampling, self._tokenizer, self._stops, slots, self._device)
        return self._rules[sampling]

    def _forget(self, group: _Group) -> None:
        del self._groups[group.ticket]
        sampling = group.request.sampling
        self._active[sampling] -= 1
        if not self._active[sampling]:
            del self._active[sampling], self._rules[sampling]

    # -- one step

    def _worth_admitting(self) -> bool:
        """Reading a prompt costs as much as a step, so it waits until an eighth of the slots is free."""
        free = self._cache.slots - self.running
        return free >= len(self._waiting[0].members) and free >= self._cache.slots // 8

    def _admit(self) -> torch.Tensor:
        """Read as many waiting prompts as fit and sample the first token of their rollouts. Returns which
        slots are finished.
        """
        free, count = self._cache.slots - self.running, 0
        while count < len(self._waiting) and len(self._waiting[count].members) <= free:
            free -= len(self._waiting[count].members)
            count += 1
        admitted, self._waiting = self._waiting[:count], self._waiting[count:]
        prompts = [each.group.prompt.tokens for each in admitted]
        repeats = torch.tensor([len(each.members) for each in admitted])
        logits, prefilled = self._read(prompts)
        if self._recorder is not None:
            self._note_prompts(admitted, self._recorder.take())
        self._cache.insert(prefilled, torch.tensor([len(prompt) for prompt in prompts]), repeats)
        running = self.running
        self._rows = torch.cat([self._rows, *(self._start(each) for each in admitted)])
        return self._accept(slice(running, None), logits.repeat_interleave(repeats.to(self._device), dim=0))

    def _start(self, waiting: _Waiting) -> torch.Tensor:
        group = waiting.group
        seed, group_id = group.request.sampling.seed, group.request.group_id
        rows = self._table.start(uniform_draws(seed, group_id, waiting.members, group.limit))
        for row, member in zip(rows.tolist(), waiting.members, strict=True):
            self._rollouts[row] = _Rollout(group, member)
        group.rules.start(rows, group.prompt)
        return rows

    def _note_prompts(self, admitted: list[_Waiting], taken: torch.Tensor) -> None:
        """Store the routes [p * width, R, k] of left-padded prompts."""
        by_prompt = taken.view(len(admitted), -1, *taken.shape[1:])
        for each, routes in zip(admitted, by_prompt, strict=True):
            each.group.prompt_routes = routes[-len(each.group.prompt.tokens) :]

    def _read(self, sequences: list[list[int]]) -> tuple[torch.Tensor, DynamicCache]:
        """The logits after each sequence [p, V] and the keys and values of the sequences, left-padded."""
        width = max(len(sequence) for sequence in sequences)
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        ids = torch.tensor([[0] * (width - len(sequence)) + sequence for sequence in sequences])
        columns = torch.arange(width)
        starts = (width - lengths)[:, None]
        # A padding column sees itself, so that its softmax is defined; nothing else sees it.
        visible = (columns[:, None] >= columns) & (
            (columns >= starts)[:, None] | torch.eye(width, dtype=torch.bool)
        )
        distance = columns[:, None] - columns
        cache = DynamicCache()  # holds all tokens, also in layers with a window

        def mask(window: int | None) -> torch.Tensor:
            seen = visible if window is None else visible & (distance < window)
            return _additive(seen, self._dtype).to(self._device)[:, None]

        output = self._model(
            input_ids=ids.to(self._device),
            attention_mask=self._masks(mask),
            position_ids=(columns - starts).clamp(min=0).to(self._device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1], cache

    def _masks(
        self, mask: Callable[[int | None], torch.Tensor | None]
    ) -> torch.Tensor | dict[str, torch.Tensor | None] | None:
        """The masks of a forward pass, as the model takes them. `mask` returns the one for a window."""
        if self._kinds.is_full:
            return mask(None)
        masks = {kind: mask(window) for kind, window in self._kinds.windows.items()}
        return masks if self._kinds.by_layer else next(iter(masks.values()))

    def _decode(self) -> torch.Tensor:
        """Sample one token for every rollout. Returns which slots are finished."""
        self._cache.open_column()
        output = self._model(
            input_ids=self._table.newest(self._rows)[:, None].to(self._device),
            attention_mask=self._masks(self._cache.mask),
            position_ids=self._cache.positions()[:, None].to(self._device),
            past_key_values=self._cache,
            use_cache=True,
        )
        if self._recorder is not None:
            self._table.note_routes(self._rows, self._recorder.take())
        return self._accept(slice(0, None), output.logits[:, -1])

    def _accept(self, slots: slice, logits: torch.Tensor) -> torch.Tensor:
        """Sample a token for the rollouts in `slots` and store it. Returns which slots are finished."""
        table, rows = self._table, self._rows[slots]
        places = table.lengths[rows]
        draws = table.draws[rows, places]
        if len(self._rules) == 1:
            (rules,) = self._rules.values()
            table.append(rows, rules.choose(logits, draws, rows, places), self._version)
        else:
            for rules, indices in self._by_rules(rows):
                part = rows[indices]
                chosen = rules.choose(logits[indices.to(self._device)], draws[indices], part, places[indices])
                table.append(part, chosen, self._version)
        finished = torch.zeros(len(self._rows), dtype=torch.bool)
        finished[slots] = table.stopped[rows] | (places + 1 >= table.limits[rows])
        return finished

    def _by_rules(self, rows: torch.Tensor) -> Iterable[tuple[SamplingRules, torch.Tensor]]:
        """The indices into `rows` of the rollouts that share their parameters."""
        indices: dict[SamplingParams, list[int]] = {}
        for index, row in enumerate(rows.tolist()):
            indices.setdefault(self._rollouts[row].group.request.sampling, []).append(index)
        return [(self._rules[sampling], torch.tensor(each)) for sampling, each in indices.items()]

    def _finish(self, finished: torch.Tensor) -> list[_Group]:
        """Store the responses in the slots where `finished` is True and free the slots. Returns the groups
        that are complete.
        """
        if not finished.any():
            return []
        complete: list[_Group] = []
        done = self._rows[finished]
        for rules, indices in self._by_rules(done):
            rows = done[indices].tolist()
            texts = rules.texts(rows, [self._table.sampled(row) for row in rows])
            for row, text in zip(rows, texts, strict=True):
                rollout = self._rollouts[row]
                group = rollout.group
                group.responses[rollout.member] = self._table.finish(row, text, self._recorder is not None)
                if len(group.responses) == group.request.group_size:
                    complete.append(group)
        self._drop(finished)
        for group in complete:
            self._forget(group)
        return complete

    def _drop(self, slots: torch.Tensor) -> list[int]:
        """Free the slots where `slots` is True. Returns their rows."""
        dropped = self._rows[slots].tolist()
        for row in dropped:
            del self._rollouts[row]
        self._rows = self._rows[self._cache.drop(slots)]
        return dropped

    # -- weights

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
        """See `WeightTarget`."""
        self._version = version

    @torch.inference_mode()
    def recompute(self) -> None:
        """Read the prompts and the sampled tokens of all running rollouts again. Recorded routes stay those
        with which the tokens were sampled.
        """
        sequences = {
            # The next step reads the newest token.
            row: self._rollouts[row].group.prompt.tokens + self._table.sampled(row)[:-1]
            for row in self._rows.tolist()
        }
        rows = sorted(sequences, key=lambda row: -len(sequences[row]))
        self._rows = torch.tensor(rows)
        self._cache.clear()
        count = max(1, _RECOMPUTED_TOKENS // len(sequences[rows[0]]))
        for first in range(0, len(rows), count):
            part = [sequences[row] for row in rows[first : first + count]]
            _, cache = self._read(part)
            lengths = torch.tensor([len(sequence) for sequence in part])
            self._cache.insert(cache, lengths, torch.ones_like(lengths))


def _additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
