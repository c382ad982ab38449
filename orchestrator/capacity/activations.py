"""Bytes that depend on tokens: what autograd keeps of a micro-batch, its logits, and the cache of a rollout
worker.

Counted operation by operation for transformers' modules as the learner runs them: fused attention, which
keeps queries, keys, values, its output and one number a row and head but no scores (FlashAttention, Dao et
al. 2022, https://arxiv.org/abs/2205.14135); latent attention with its values padded to the width of its keys;
experts as grouped products over copies of their tokens. The method is that of Korthikanti et al. 2022,
https://arxiv.org/abs/2205.05198, section 4, whose formula is for GPT's layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.capacity.shape import FeedForward, GroupedAttention, LatentAttention, ModelShape

FP32, INT64 = 4, 8
CHUNK_BYTES = FP32 << 22
"""A float32 temporary of the chunked log-softmax, at most."""
CHUNKS = 3
"""Such temporaries at once: scaled logits, probabilities, and one in between."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward and backward on one rank."""

    positions: int
    """Padding among them."""
    trained: int
    """Positions that predict a trained token."""
    recompute: bool
    element_bytes: int
    expert_parallel_size: int


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes at the moment when they are most: the end of the forward pass, or the beginning of the backward
    pass.
    """

    kept: int
    """What autograd keeps for the backward pass, logits apart."""
    logits: int
    """Logits, their gradient, and the temporaries of the log-softmax; or the gradient of the head."""
    working: int
    """The layer in flight: computed again, if so configured; the gradients of its widest activation and of
    its largest weight, before they are added to those of other micro-batches.
    """

    @property
    def most(self) -> int:
        """At the moment when they are most."""
        return self.kept + max(self.logits, self.working)


def micro_batch_activations(shape: ModelShape, batch: MicroBatch) -> Activations:
    """What a micro-batch takes beside the learner's state."""
    size, tokens = batch.element_bytes, batch.positions
    layers = [_layer(shape, layer, size) for layer in shape.layers]
    kept = shape.hidden * size * len(layers) if batch.recompute else sum(layers)
    ends = norm(shape.hidden, size) - size * shape.hidden + INT64
    logits = batch.trained * shape.vocabulary * size
    chunks = CHUNKS * min(CHUNK_BYTES, FP32 * batch.trained * shape.vocabulary)
    widest = max(_widest(shape, layer) for layer in shape.layers)
    weight = max(_largest(shape, layer, batch.expert_parallel_size) for layer in shape.layers)
    return Activations(
        kept=tokens * (kept + ends) + batch.trained * (shape.hidden * size + INT64),
        logits=max(2 * logits + chunks, logits + shape.vocabulary * shape.hidden * size),
        working=tokens * ((max(layers) if batch.recompute else 0) + 2 * size * widest) + size * weight,
    )


def cache_bytes(shape: ModelShape, rows: int, length: int, element_bytes: int) -> int:
    """The cache of `rows` rollouts of `length` tokens, prompt and response: keys and values of the shared
    heads, or latents and rotary keys.
    """
    return rows * length * shape.attention.cached * len(shape.layers) * element_bytes


def norm(width: int, size: int) -> int:
    """RMSNorm, a row: its input in float32, scaled input and output in the model's type, and its scale."""
    return width * (FP32 + 2 * size) + FP32


def _layer(shape: ModelShape, layer: FeedForward, size: int) -> int:
    """A token's activations in one layer: two norms, attention, feed-forward."""
    return 2 * norm(shape.hidden, size) + _attention(shape, size) + _feed_forward(shape, layer, size)


def _attention(shape: ModelShape, size: int) -> int:
    attention = shape.attention
    if isinstance(attention, GroupedAttention):
        return _grouped(attention, size)
    return _latent(attention, size)


def _grouped(attention: GroupedAttention, size: int) -> int:
    """Queries, keys, values, output (which the output projection keeps too), and the normaliser of each
    head.
    """
    queries, keys = attention.heads * attention.width, attention.key_value_heads * attention.width
    kept = size * (2 * queries + 2 * keys) + FP32 * attention.heads
    if attention.head_norms:
        heads = attention.heads + attention.key_value_heads
        kept += (queries + keys) * (FP32 + size) + FP32 * heads
    return kept


def _latent(attention: LatentAttention, size: int) -> int:
    """Queries, keys, padded values and padded output are all as wide as the keys; the output projection keeps
    the output cut to its width.
    """
    padded = attention.value < attention.key_width
    wide = 4 * attention.key_width if padded else 2 * (attention.key_width + attention.value)
    kept = size * attention.heads * wide + FP32 * attention.heads
    if padded:
        kept += size * attention.heads * attention.value
    ranks = [attention.latent, *([attention.query_rank] if attention.query_rank else [])]
    return kept + sum(norm(rank, size) for rank in ranks)


def _feed_forward(shape: ModelShape, layer: FeedForward, size: int) -> int:
    """Gate, up, activated gate and their product; experts keep also their copies of the input and of the
    output.
    """
    kept = size * 4 * (layer.dense + layer.shared)
    if not layer.experts:
        return kept
    kept += size * layer.chosen * (4 * layer.expert + 2 * shape.hidden)
    kept += FP32 * (layer.experts + 2 * layer.chosen) + 5 * INT64 * layer.chosen
    if isinstance(shape.attention, LatentAttention) and size < FP32:
        kept += FP32 * shape.hidden  # DeepSeek's routers read hidden states in float32
    return kept


def _widest(shape: ModelShape, layer: FeedForward) -> int:
    """Elements of a token's widest activation in a layer."""
    attention = shape.attention
    feed_forward = max(layer.dense, layer.shared, layer.chosen * max(2 * layer.expert, shape.hidden))
    return max(
        shape.hidden, attention.heads * attention.key_width, feed_forward if layer.experts else layer.dense
    )


def _largest(shape: ModelShape, layer: FeedForward, expert_parallel_size: int) -> int:
    """Elements of a layer's largest weight on a rank: the experts' gates are one."""
    experts = layer.experts // expert_parallel_size * 2 * layer.expert
    return shape.hidden * max(layer.dense, layer.shared, experts)
