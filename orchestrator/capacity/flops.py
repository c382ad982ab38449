"""Floating-point operations of a token: a multiplication and an addition are two.

Matrix products only, as everybody counts them (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, 2.1;
PaLM, https://arxiv.org/abs/2204.02311, appendix B): norms, activations, rotations and the softmax are left
out, and are what a utilisation below 1 pays for.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from orchestrator.capacity.parameters import MATRICES
from orchestrator.capacity.shape import ModelShape
from orchestrator.training.records import TokenWork

BACKWARD = 2
"""Backward passes of a product y = x w: dx = dy w^T and dw = x^T dy."""


@dataclass(frozen=True, slots=True)
class ForwardFlops:
    """FLOPs of one token in the forward pass, summed over all layers."""

    attention_projections: float
    attention_scores: float
    """Queries times keys, and attention weights times values."""
    dense: float
    routed_experts: float
    shared_experts: float
    router: float

    @property
    def layers(self) -> float:
        """The whole forward pass of a token, except the output head."""
        return sum(astuple(self))

    @property
    def recomputed(self) -> float:
        """What is computed a second time where a layer's activations are: up to the last one that a gradient
        needs. The product that ends a dense feed-forward is not repeated, nor that of the shared experts,
        which come after the routed ones.
        """
        return self.layers - (self.dense + self.shared_experts) / MATRICES


def forward_flops(shape: ModelShape, length: float, *, causal: bool = True) -> ForwardFlops:
    """Of a token in a row of `length` tokens, mean over the row.

    A causal kernel computes the (length + 1) / 2 pairs that a token has on average; `causal` False counts the
    whole square, as plain products compute it and torch's FLOP counter counts it.
    """
    hidden, attention = shape.hidden, shape.attention
    pairs = (length + 1) / 2 if causal else length
    scores = 2 * attention.heads * (attention.key_width + attention.value_width) * pairs
    return ForwardFlops(
        attention_projections=2.0 * attention.matrices(hidden) * len(shape.layers),
        attention_scores=scores * len(shape.layers),
        dense=2.0 * sum(MATRICES * hidden * layer.dense for layer in shape.layers),
        routed_experts=2.0 * sum(layer.chosen * MATRICES * hidden * layer.expert for layer in shape.layers),
        shared_experts=2.0 * sum(MATRICES * hidden * layer.shared for layer in shape.layers),
        router=2.0 * sum(hidden * layer.experts for layer in shape.layers),
    )


def head_flops(shape: ModelShape) -> float:
    """FLOPs of the output head for one position, forward pass only."""
    return 2.0 * shape.hidden * shape.vocabulary


def work_flops(shape: ModelShape, work: TokenWork) -> float:
    """Forward over counted tokens, rows of any lengths; a kernel that leaves out what a causal mask hides."""
    token = forward_flops(shape, 1, causal=False)
    linear = token.layers - token.attention_scores
    return work.tokens * linear + work.pairs * token.attention_scores + work.predicted * head_flops(shape)


@dataclass(frozen=True, slots=True)
class Pass:
    """What a forward and backward pass is over: `tokens` in rows of `length` on average, of which `trained`
    are predicted by the head (the learner's head sees no other position).
    """

    tokens: float
    trained: float
    length: float
    recompute: bool
    """Activations of the layers are computed again in the backward pass."""


def training_flops(shape: ModelShape, work: Pass, *, causal: bool = True) -> float:
    """Forward and backward: three times the forward pass, and what is computed again."""
    forward = forward_flops(shape, work.length, causal=causal)
    again = forward.recomputed if work.recompute else 0.0
    layers = work.tokens * (forward.layers * (1 + BACKWARD) + again)
    return layers + work.trained * head_flops(shape) * (1 + BACKWARD)


def inference_flops(shape: ModelShape, work: Pass, *, causal: bool = True) -> float:
    """FLOPs of a forward pass alone, as for the log-probabilities of a reference model."""
    layers = work.tokens * forward_flops(shape, work.length, causal=causal).layers
    return layers + work.trained * head_flops(shape)
