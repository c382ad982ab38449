"""Computes log-probs of target tokens and the entropy of their distributions, without computing logits for
tokens that are not trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from orchestrator.training.learner.micro_batch import MicroBatch

_CHUNK_ELEMENTS = 1 << 22
"""Float32 elements of the vocabulary-wide temporaries: 16 MiB, independent of the number of tokens."""


class SelectiveLogSoftmax(torch.autograd.Function):
    """log softmax(logits / temperature) at one target per row, and the entropy, in chunks of rows.

    Saves the logits and one number per row for the backward pass, which recomputes the softmax. The peak
    memory is therefore the logits, their gradient and one chunk; `log_softmax` with `gather` holds two more
    float32 copies of the logits.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's context has no public type
        logits: Tensor,
        targets: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        """Logits [T, V] and targets [T] int64 give log-probs [T] and entropies [T], float32, in nats."""
        tokens = logits.shape[0]
        logprobs, entropies, normalisers = (
            torch.empty(tokens, dtype=torch.float32, device=logits.device) for _ in range(3)
        )
        for rows in _chunks(logits):
            scaled = _scaled(logits[rows], temperature)
            normaliser = torch.logsumexp(scaled, dim=-1)
            chosen = scaled.gather(1, targets[rows, None]).squeeze(1)
            probabilities = torch.exp(scaled - normaliser[:, None])
            expected = torch.linalg.vecdot(
                probabilities, scaled
            )  # sum of p z, so that H = logsumexp(z) - sum of p z
            logprobs[rows], entropies[rows], normalisers[rows] = (
                chosen - normaliser,
                normaliser - expected,
                normaliser,
            )
        ctx.save_for_backward(logits, targets, normalisers, entropies)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)  # None for an output that the loss does not use
        return logprobs, entropies

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        *grad_outputs: Tensor | None,
    ) -> tuple[Tensor, None, None]:
        """With p the softmax and H its entropy,

        d log p(target) / d logits = (onehot(target) - p) / temperature
        d H / d logits = -p (log p + H) / temperature
        """
        logits, targets, normalisers, entropies = ctx.saved_tensors
        of_logprobs, of_entropies = grad_outputs
        scale = torch.zeros_like(normalisers) if of_logprobs is None else of_logprobs.float()
        scale = scale / ctx.temperature
        gradient = torch.empty_like(logits)
        for rows in _chunks(logits):
            log_probabilities = _scaled(logits[rows], ctx.temperature) - normalisers[rows, None]
            probabilities = torch.exp(log_probabilities)
            if of_entropies is None:
                probabilities *= -scale[rows, None]
            else:
                entropy_scale = (of_entropies[rows].float() / ctx.temperature)[:, None]
                spread = log_probabilities.add_(entropies[rows, None]).mul_(entropy_scale)
                probabilities *= -(scale[rows, None] + spread)
            probabilities.scatter_add_(1, targets[rows, None], scale[rows, None])
            gradient[rows] = probabilities
        return gradient, None, None


def selective_log_softmax(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs [T] and entropies [T], both with gradient, of logits [T, V] and targets [T]. See
    `SelectiveLogSoftmax`.
    """
    return SelectiveLogSoftmax.apply(logits, targets, temperature)  # pyright: ignore[reportReturnType]


class TokenScorer:
    """Runs a causal language model on a micro-batch and scores its trained tokens.

    The output head receives only the hidden states that predict a trained token. A hook on the
    model's own head selects them, so that later operations of a model family on its logits (scaling,
    soft caps) still apply.
    """

    def __init__(self, model: PreTrainedModel, temperature: float) -> None:
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Module):
            raise TypeError(f"{type(model).__name__} has no output head to score tokens with")
        self._temperature = temperature
        self._predictors: Tensor | None = None
        head.register_forward_pre_hook(self._select)

    def __call__(self, forward: Callable[..., Any], batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Log-probs [T] and entropies [T], float32, of the batch's trained tokens. `forward` is the model or
        an engine that wraps it.
        """
        arguments = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
        self._predictors = batch.predictors
        try:
            logits = forward(input_ids=batch.input_ids, use_cache=False, **arguments).logits
        finally:
            self._predictors = None
        return selective_log_softmax(logits, batch.targets, self._temperature)

    def _select(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        del head
        if self._predictors is None:
            return None
        hidden = inputs[0]
        return (hidden.reshape(-1, hidden.shape[-1]).index_select(0, self._predictors), *inputs[1:])


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    logits = logits.float()
    return logits if temperature == 1.0 else logits / temperature


def _chunks(logits: Tensor) -> list[slice]:
    tokens, vocabulary = logits.shape
    size = max(1, _CHUNK_ELEMENTS // vocabulary)
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]
