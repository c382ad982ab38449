"""Samples without a key-value cache: every token costs a forward pass over the whole sequence.

It is slow but simple, which makes it a reference for the tokens and log-probs of faster engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from orchestrator.training.prompts.chat_template import (
    RenderedPrompt,
    decode_responses,
    render,
    stop_tokens,
)
from orchestrator.training.records import Finish, WeightVersion
from orchestrator.training.rollouts.blocks import require_room, room_for_response
from orchestrator.training.rollouts.engine import NamedTensor, Response, SampledGroup, SampleRequest
from orchestrator.training.rollouts.sampling import sample, uniform_draws


@dataclass
class Rollout:
    """One rollout in progress. `draws` [limit] holds the random number of each token."""

    draws: torch.Tensor
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    finish: Finish = Finish.LENGTH
    is_complete: bool = False


@dataclass
class Group:
    """A group in progress."""

    request: SampleRequest
    prompt: RenderedPrompt
    limit: int
    rollouts: list[Rollout]

    def running(self) -> list[Rollout]:
        return [rollout for rollout in self.rollouts if not rollout.is_complete]


class UncachedSampler:
    """A `StepSampler` over any causal language model of transformers."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        context: int,
        device: torch.device,
    ) -> None:
        self._model = model.to(device).eval()  # pyright: ignore[reportArgumentType]
        self._tokenizer, self._device, self._context = tokenizer, device, context
        self._weights = dict(self._model.state_dict(keep_vars=True))
        self._stops = stop_tokens(tokenizer, model.generation_config.eos_token_id)
        self._version: WeightVersion = 0
        self._groups: dict[int, Group] = {}

    @property
    def running(self) -> int:
        """Number of rollouts in progress."""
        return sum(len(group.running()) for group in self._groups.values())

    def submit(self, ticket: int, request: SampleRequest) -> None:
        """Begin all rollouts of the group."""
        prompt, sampling = render(self._tokenizer, request.prompt.text), request.sampling
        require_room(request.prompt, len(prompt.tokens), self._context)
        limit = room_for_response(len(prompt.tokens), sampling.max_new_tokens, self._context)
        draws = uniform_draws(sampling.seed, request.group_id, range(request.group_size), limit)
        self._groups[ticket] = Group(request, prompt, limit, [Rollout(each) for each in draws])

    def abort(self, ticket: int) -> None:
        """Drop the group."""
        self._groups.pop(ticket, None)

    @torch.inference_mode()
    def step(self) -> Sequence[tuple[int, SampledGroup]]:
        """Sample one token for every rollout, group by group."""
        for group in self._groups.values():
            self._extend(group)
        complete = [ticket for ticket, group in self._groups.items() if not group.running()]
        return [(ticket, self._result(self._groups.pop(ticket))) for ticket in complete]

    def recompute(self) -> None:
        """Nothing is cached."""

    def _extend(self, group: Group) -> None:
        running = group.running()
        sequences = torch.tensor([[*group.prompt.tokens, *rollout.tokens] for rollout in running])
        logits = self._model(input_ids=sequences.to(self._device)).logits[:, -1].cpu()
        draws = torch.stack([rollout.draws[len(rollout.tokens)] for rollout in running])
        tokens, logprobs = sample(logits, draws, group.request.sampling)
        for rollout, token, logprob in zip(running, tokens.tolist(), logprobs.tolist(), strict=True):
            rollout.tokens.append(token)
            rollout.logprobs.append(logprob)
            rollout.versions.append(self._version)
            if token in self._stops:
                rollout.finish = Finish.STOP
            rollout.is_complete = token in self._stops or len(rollout.tokens) == group.limit

    def _result(self, group: Group) -> SampledGroup:
        texts = decode_responses(self._tokenizer, [rollout.tokens for rollout in group.rollouts], self._stops)
        responses = tuple(
            Response(
                np.array(rollout.tokens, dtype=np.int32),
                np.array(rollout.logprobs, dtype=np.float32),
                np.array(rollout.versions, dtype=np.int32),
                rollout.finish,
                text,
            )
            for rollout, text in zip(group.rollouts, texts, strict=True)
        )
        return SampledGroup(
            group.request, group.prompt.tokens, responses, group.limit, prefill=group.prompt.prefill
        )

    @torch.no_grad()
    def load_weights(self, version: WeightVersion, tensors: Iterable[NamedTensor]) -> None:
        """Copy every tensor into the parameter or buffer of its name. Raises ValueError for a weight that the
        model does not have.
        """
        for name, tensor in tensors:
            own = self._weights.get(name)
            if own is None or own.shape != tensor.shape:
                raise ValueError(f"the model has no weight {name!r} of shape {tuple(tensor.shape)}")
            own.copy_(tensor)
        self._version = version

    def weight_storage(self, name: str) -> torch.Tensor | None:
        """None: all new weights arrive through `load_weights`."""
        return None

    def weights_written(self, version: WeightVersion) -> None:
        """See `WeightTarget`. It is not called as long as `weight_storage` returns None."""
        self._version = version
