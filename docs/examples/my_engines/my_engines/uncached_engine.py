"""Samples without a key-value cache: every token costs a forward pass over the whole sequence.

It is slow but simple, which makes it a reference for the tokens and log-probs of faster engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from orchestrator.training.prompts.chat_template import decode_responses, render_all, stop_tokens
from orchestrator.training.records import Finish, RolloutBlock, SamplingParams, WeightVersion
from orchestrator.training.rollouts.blocks import Response, assemble_block, require_room, room_for_response
from orchestrator.training.rollouts.engine import GenerateRequest, NamedTensor
from orchestrator.training.rollouts.sampling import sample, uniform_draws


class UncachedEngine:
    """An `Engine` over any causal language model of transformers."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        context: int,
        max_batch_rows: int,
        device: torch.device,
    ) -> None:
        self._model = model.to(device).eval()  # pyright: ignore[reportArgumentType]
        self._tokenizer, self._device = tokenizer, device
        self._context, self._max_rows = context, max_batch_rows
        self._weights = dict(self._model.state_dict(keep_vars=True))
        self._stops = stop_tokens(tokenizer, model.generation_config.eos_token_id)
        self._version: WeightVersion = 0

    @torch.inference_mode()
    def generate(self, request: GenerateRequest) -> RolloutBlock:
        """Sample one group after the other, so that its tokens do not depend on the rest of the request."""
        prompts = list(render_all(self._tokenizer, [prompt.text for prompt in request.prompts]))
        sampling, size = request.sampling, request.group_size
        responses: list[Response] = []
        for group_id, prompt, rendered in zip(request.group_ids, request.prompts, prompts, strict=True):
            require_room(prompt, len(rendered.tokens), self._context)
            room = room_for_response(len(rendered.tokens), sampling.max_new_tokens, self._context)
            draws = uniform_draws(sampling.seed, [group_id], size, room)
            for rows in draws.split(self._max_rows):
                responses += self._respond(rendered.tokens, rows, sampling)
        return assemble_block(
            request,
            [rendered.tokens for rendered in prompts],
            responses,
            self._version,
            self._context,
            lambda rows: decode_responses(self._tokenizer, rows, self._stops),
            prefills=[rendered.prefill for rendered in prompts],
        )

    def _respond(
        self, prompt: Sequence[int], draws: torch.Tensor, sampling: SamplingParams
    ) -> list[Response]:
        """One response to `prompt` for each row of `draws`, a float32 tensor of shape [rows, limit]."""
        tokens: list[list[int]] = [[] for _ in draws]
        logprobs: list[list[float]] = [[] for _ in draws]
        running = list(range(len(draws)))
        for position in range(draws.shape[1]):
            sequences = [[*prompt, *tokens[row]] for row in running]
            logits = self._model(input_ids=torch.tensor(sequences, device=self._device)).logits[:, -1].cpu()
            chosen, chosen_logprobs = sample(logits, draws[running, position], sampling)
            for row, token, logprob in zip(running, chosen.tolist(), chosen_logprobs.tolist(), strict=True):
                tokens[row].append(token)
                logprobs[row].append(logprob)
            running = [row for row in running if tokens[row][-1] not in self._stops]
            if not running:
                break
        return [
            Response(tokens[row], logprobs[row], Finish.LENGTH if row in running else Finish.STOP)
            for row in range(len(draws))
        ]

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
        """See `Engine`. It is not called as long as `weight_storage` returns None."""
        self._version = version
