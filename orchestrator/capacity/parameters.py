"""How many parameters a model has, in which tensors, and how many of them a token meets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace

from orchestrator.capacity.shape import FeedForward, ModelShape, Tensor

MATRICES = 3
"""Matrices of a gated feed-forward layer: gate, up and down projection."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """Elements by component. `tiny_moe`: 317,344 in all, `routed_experts` 196,608 of them."""

    attention: int
    dense: int
    routed_experts: int
    shared_experts: int
    router: int
    norms: int
    embedding: int
    head: int
    """0 if the output head shares its weights with the embedding."""

    @property
    def total(self) -> int:
        """The sum of all components."""
        return sum(astuple(self))

    @property
    def without_embedding(self) -> int:
        """All but the input embedding, of which a token reads one row."""
        return self.total - self.embedding


def tensors(shape: ModelShape) -> list[Tensor]:
    """Every parameter tensor, layer by layer as in transformers; inside a layer in DeepSeek's order."""
    found: list[Tensor] = [("embedding", shape.vocabulary * shape.hidden)]
    for layer in shape.layers:
        found += shape.attention.tensors(shape.hidden)
        found += _feed_forward(shape.hidden, layer)
        found += [("norms", shape.hidden)] * 2
    found.append(("norms", shape.hidden))
    return found if shape.tied else [*found, ("head", shape.vocabulary * shape.hidden)]


def total_parameters(shape: ModelShape) -> Parameters:
    """What `sum(p.numel() for p in model.parameters())` counts. Multi-token-prediction layers, which
    transformers leaves out, are not among them.
    """
    counts = dict.fromkeys(Parameters.__dataclass_fields__, 0)
    for component, elements in tensors(shape):
        counts[component] += elements
    return Parameters(**counts)


def active_parameters(shape: ModelShape) -> Parameters:
    """What one token meets: the chosen experts of each layer, and everything else. The embedding is counted
    whole, as most published totals do.
    """
    chosen = sum(layer.chosen * MATRICES * shape.hidden * layer.expert for layer in shape.layers)
    return replace(total_parameters(shape), routed_experts=chosen)


def _feed_forward(hidden: int, layer: FeedForward) -> Iterator[Tensor]:
    """Routed experts are two stacked tensors a layer in transformers: gate and up, and down."""
    yield from _gated("dense", hidden, layer.dense, layer.bias)
    if layer.experts:
        yield "routed_experts", layer.experts * 2 * layer.expert * hidden
        yield "routed_experts", layer.experts * layer.expert * hidden
        yield "router", layer.experts * hidden
    yield from _gated("shared_experts", hidden, layer.shared, layer.bias)


def _gated(component: str, hidden: int, width: int, bias: bool) -> Sequence[Tensor]:
    if not width:
        return ()
    matrix = (component, hidden * width)
    if not bias:
        return (matrix,) * MATRICES
    return (matrix, (component, width), matrix, (component, width), matrix, (component, hidden))
