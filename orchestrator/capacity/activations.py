"""Bytes that depend on tokens: what autograd keeps of a micro-batch, its logits, and the cache of a
rollout worker.

Counted operation by operation for transformers' modules as the learner runs them: fused attention, which
keeps queries, keys, values, its output and one number a row and head but no scores (FlashAttention, Dao et
al. 2022, https://arxiv.org/abs/2205.14135); latent attention with its values padded to the width of its keys;
experts as grouped products over copies of their tokens. The method is that of Korthikanti et al. 2022,
https://arxiv.org/abs/2205.05198, section 4, whose formula is for GPT's layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.capacity.shape import FeedForward, GroupedAttention, LatentAttention, ModelShape

FP32, INT64 = 4, 8
CHUNK_BYTES = FP32 << 22
"""A float32 temporary of the chunked log-softmax, at most."""
CHUNKS = 3
"""Such temporaries at once: scaled logits, probabilities, and one in between."""
FP32_ROUTING = ("deepseek_v2", "deepseek_v3", "mixtral")
"""Families whose routing weights are float32 in any model, and so experts' outputs that they are
multiplied with.
"""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward and backward pass on one rank."""

    positions: int
    """Tokens in the micro-batch, padding included."""
    trained: int
    """Positions whose next token is trained on: only they need logits."""
    recompute: bool
    element_bytes: int
    expert_parallel_size: int


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes of activations at the two moments when they can peak."""

    kept: int
    """What autograd keeps for the backward pass, logits apart, at the end of the forward pass."""
    logits: int
    """Then besides: logits, their gradient, and the temporaries of the log-softmax; or the
    gradient of the head.
    """
    backward: int
    """All that lives in the backward pass of the layer where that is most."""

    @property
    def most(self) -> int:
        """The peak."""
        return max(self.kept + self.logits, self.backward)


def micro_batch_activations(shape: ModelShape, batch: MicroBatch) -> Activations:
    """What a micro-batch takes beside the learner's state."""
    size, tokens = batch.element_bytes, batch.positions
    layers = [_layer(shape, layer, size) for layer in shape.layers]
    kept = shape.hidden * size * len(layers) if batch.recompute else sum(layers)
    ends = norm(shape.hidden, size) - size * shape.hidden + INT64
    logits = batch.trained * shape.vocabulary * size
    chunks = CHUNKS * min(CHUNK_BYTES, FP32 * batch.trained * shape.vocabulary)
    return Activations(
        kept=tokens * (kept + ends) + batch.trained * (shape.hidden * size + INT64),
        logits=max(2 * logits + chunks, logits + shape.vocabulary * shape.hidden * size),
        backward=max(_backward_passes(shape, batch, layers)),
    )


def _backward_passes(shape: ModelShape, batch: MicroBatch, layers: Sequence[int]) -> Iterator[int]:
    """Bytes in the backward pass of each layer: what it and the layers before it keep (those after it have
    given theirs back), the gradient of its output, and what it needs itself. A head that is the embedding
    keeps its gradient until the embedding has one too.
    """
    size, tokens = batch.element_bytes, batch.positions
    stream = shape.hidden * size
    head = shape.vocabulary * stream if shape.tied else 0
    # In float32 the first norm of a layer that is computed again keeps the layer's input itself.
    again = stream - (FP32 * shape.hidden if size == FP32 else 0)
    before = 0
    for layer, kept in zip(shape.layers, layers, strict=True):
        own = kept + (again if batch.recompute else 0)
        yield head + tokens * (before + own + stream + INT64) + _in_flight(shape, layer, batch)
        before += stream if batch.recompute else kept


def _in_flight(shape: ModelShape, layer: FeedForward, batch: MicroBatch) -> int:
    """Gradients of activations and weights inside a layer beyond what the layer keeps, less what it has given
    back, at the moment when that is most.
    """
    return max(_moments(shape, layer, batch))


def _moments(shape: ModelShape, layer: FeedForward, batch: MicroBatch) -> Iterator[int]:
    """The moments that can be the fullest, from the layer's end to its beginning. For f of a dense
    feed-forward (or of the shared experts, which come last), e of all chosen experts, h of the stream:

        dense product       its input's gradient, f, and its weight's
        dense gate          gradients of the product, of the gate and of what it gates, 3 f, less the product
        experts' outputs    their sum's gradient, spread to each, put in order into zeros: three of k h
        experts' product    its input's gradient, e, and its weight's, with the outputs' in place of outputs
        experts' gate       3 e, less the product and the outputs
        experts' input      gradients of gates, inputs and their weight, less all but the inputs
        attention           gradients of output, queries, keys and values, less all of the feed-forward
    """
    size, tokens, hidden = batch.element_bytes, batch.positions, shape.hidden
    dense = layer.dense + layer.shared
    if dense:
        yield size * (tokens * dense + hidden * (layer.dense or layer.shared))
        yield size * tokens * 2 * dense
    if layer.experts:
        chosen, outputs = layer.chosen * layer.expert, layer.chosen * hidden
        weight = layer.experts // batch.expert_parallel_size * layer.expert * hidden
        routing = FP32 if shape.family in FP32_ROUTING else size
        beside = size * (hidden - 4 * layer.shared) if layer.shared else 0
        yield tokens * (beside + 3 * routing * outputs)
        yield tokens * (beside + size * chosen) + size * weight
        yield tokens * (beside + size * (2 * chosen - outputs))
        yield tokens * (beside - size * 2 * chosen) + size * 2 * weight
    heads = shape.attention.heads * shape.attention.key_width
    yield tokens * (4 * size * heads - norm(hidden, size) - _feed_forward(shape, layer, size))


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
    """Queries, keys, values, output (which the output projection keeps too), and the
    normaliser of each head.
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
    """Gate, up, activated gate and their product; experts keep also their copies of the input
    and of the output.
    """
    kept = size * 4 * (layer.dense + layer.shared)
    if not layer.experts:
        return kept
    kept += size * layer.chosen * (4 * layer.expert + 2 * shape.hidden)
    kept += FP32 * (layer.experts + 2 * layer.chosen) + 5 * INT64 * layer.chosen
    if isinstance(shape.attention, LatentAttention) and size < FP32:
        kept += FP32 * shape.hidden  # DeepSeek's routers read hidden states in float32
    return kept
