"""The numbers of an architecture that decide its size: from a Hugging Face `config.json`, as plain data.

A worked example, `tiny_moe`: hidden 64, latent attention with 8 heads, layer 0 dense (width 128), layers 1
and 2 with 8 experts of width 64, of which 2 see a token, and a shared one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import ConfigError

Tensor = tuple[str, int]
"""A parameter tensor: the component that it belongs to, and its elements."""


@dataclass(frozen=True, slots=True)
class GroupedAttention:
    """Attention whose `key_value_heads` are shared by groups of query heads (GQA; MHA if all are).

    Ainslie et al. 2023, https://arxiv.org/abs/2305.13245.
    """

    heads: int
    key_value_heads: int
    width: int
    """Width of one head."""
    input_bias: bool
    output_bias: bool
    head_norms: bool
    """Queries and keys are normalised a head (Qwen3)."""

    def matrices(self, hidden: int) -> int:
        """Elements of the projection matrices that every token is multiplied with."""
        return 2 * hidden * self.width * (self.heads + self.key_value_heads)

    def tensors(self, hidden: int) -> list[Tensor]:
        """The parameter tensors, in the order of transformers' module."""
        queries, keys = self.heads * self.width, self.key_value_heads * self.width
        sizes: list[int] = []
        for width in (queries, keys, keys):
            sizes += [hidden * width, *([width] if self.input_bias else [])]
        sizes += [queries * hidden, *([hidden] if self.output_bias else [])]
        norms = [("norms", self.width)] * (2 if self.head_norms else 0)
        return [("attention", size) for size in sizes] + norms

    @property
    def key_width(self) -> int:
        """Width of the queries and keys of one head."""
        return self.width

    @property
    def value_width(self) -> int:
        """Width of the values of one head."""
        return self.width

    @property
    def cached(self) -> int:
        """Elements that generation keeps of each token, a layer: keys and values."""
        return 2 * self.key_value_heads * self.width


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (MLA): keys and values are expanded from one latent vector a token.

    DeepSeek-V2, https://arxiv.org/abs/2405.04434, 2.1.
    """

    heads: int
    query_rank: int | None
    """Width of the compressed query; None: queries are not compressed."""
    latent: int
    plain: int
    """Width of the part of a key without position (`qk_nope_head_dim`)."""
    rotary: int
    """Width of the part with position, shared by the heads in keys (`qk_rope_head_dim`)."""
    value: int
    bias: bool

    def matrices(self, hidden: int) -> int:
        """Elements of the projection matrices that every token is multiplied with."""
        queries = self.heads * self.key_width
        query = hidden * queries if self.query_rank is None else self.query_rank * (hidden + queries)
        latent = hidden * (self.latent + self.rotary)
        expansion = self.latent * self.heads * (self.plain + self.value)
        return query + latent + expansion + self.heads * self.value * hidden

    def tensors(self, hidden: int) -> list[Tensor]:
        """The parameter tensors, in the order of transformers' module."""
        queries, compressed = self.heads * self.key_width, self.latent + self.rotary
        if self.query_rank is None:
            query: list[Tensor] = [("attention", hidden * queries)]
        else:
            rank = self.query_rank
            bias: list[Tensor] = [("attention", rank)] if self.bias else []
            query = [("attention", hidden * rank), *bias, ("norms", rank), ("attention", rank * queries)]
        return [
            *query,
            ("attention", hidden * compressed),
            *([("attention", compressed)] if self.bias else []),
            ("norms", self.latent),
            ("attention", self.latent * self.heads * (self.plain + self.value)),
            ("attention", self.heads * self.value * hidden),
            *([("attention", hidden)] if self.bias else []),
        ]

    @property
    def key_width(self) -> int:
        """Width of the queries and keys of one head."""
        return self.plain + self.rotary

    @property
    def value_width(self) -> int:
        """Width of the values of one head."""
        return self.value

    @property
    def cached(self) -> int:
        """Elements that generation keeps of each token, a layer: the latent and the rotary key."""
        return self.latent + self.rotary


Attention = GroupedAttention | LatentAttention


@dataclass(frozen=True, slots=True)
class FeedForward:
    """A layer's gated feed-forward (three matrices): dense, or experts of which a router chooses `chosen` a
    token. Widths are of the intermediate activation; 0 where a kind is absent.
    """

    dense: int
    experts: int
    chosen: int
    expert: int
    shared: int
    """Total width of all shared experts."""
    bias: bool


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder: embedding, layers of attention and feed-forward, a final norm, an output head."""

    family: str
    hidden: int
    vocabulary: int
    tied: bool
    """The output head shares its weights with the embedding."""
    attention: Attention
    layers: tuple[FeedForward, ...]
    context: int
    """Most positions that the architecture is made for."""

    @property
    def experts(self) -> int:
        """Routed experts of a layer that has some; 0 for a dense model."""
        return max((layer.experts for layer in self.layers), default=0)


def read_shape(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a `config.json` describes; keys it leaves out are what transformers takes for them.

    Raises ConfigError for a `model_type` without a reader and for a key without a value.
    """
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        hint = "the planner has no formula for this architecture"
        raise ConfigError("model_type", family, ", ".join(sorted(FAMILIES)), hint)
    defaults, attention, layers = FAMILIES[family]
    values = _Values(
        family, {**defaults, **{key: value for key, value in config.items() if value is not None}}
    )
    return ModelShape(
        family=family,
        hidden=values["hidden_size"],
        vocabulary=values["vocab_size"],
        tied=bool(values["tie_word_embeddings"]),
        attention=attention(values),
        layers=tuple(layers(values, index) for index in range(values["num_hidden_layers"])),
        context=values["max_position_embeddings"],
    )


class _Values:
    """Reads numbers from a config.json; an error names the key that is missing."""

    def __init__(self, family: str, values: Mapping[str, Any]) -> None:
        self._family, self._values = family, values

    def __getitem__(self, key: str) -> int:
        value = self._values.get(key)
        if not isinstance(value, int):
            raise ConfigError(key, repr(value), "a whole number", f"model_type {self._family} needs it")
        return value

    def get(self, *keys: str) -> int | None:
        """The value of the first of `keys` that the config has."""
        return next((self[key] for key in keys if self._values.get(key) is not None), None)

    def several(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers; empty if it is not there."""
        return tuple(self._values.get(key) or ())


def _grouped(*, input_bias: bool | None, head_norms: bool) -> Callable[[_Values], GroupedAttention]:
    """`input_bias` None: the config's `attention_bias` decides, for the output too."""

    def read(values: _Values) -> GroupedAttention:
        heads = values["num_attention_heads"]
        configured = bool(values["attention_bias"]) if input_bias is None else False
        return GroupedAttention(
            heads=heads,
            key_value_heads=values.get("num_key_value_heads") or heads,
            width=values.get("head_dim") or values["hidden_size"] // heads,
            input_bias=configured if input_bias is None else input_bias,
            output_bias=configured,
            head_norms=head_norms,
        )

    return read


def _latent(values: _Values) -> LatentAttention:
    return LatentAttention(
        heads=values["num_attention_heads"],
        query_rank=values.get("q_lora_rank"),
        latent=values["kv_lora_rank"],
        plain=values["qk_nope_head_dim"],
        rotary=values["qk_rope_head_dim"],
        value=values["v_head_dim"],
        bias=bool(values["attention_bias"]),
    )


def _dense(values: _Values, index: int) -> FeedForward:
    del index
    return FeedForward(values["intermediate_size"], 0, 0, 0, 0, bool(values["mlp_bias"]))


def _deepseek(values: _Values, index: int) -> FeedForward:
    if index < values["first_k_dense_replace"]:
        return _dense(values, index)
    width = values["moe_intermediate_size"]
    experts = values.get("n_routed_experts", "num_local_experts", "num_experts")
    if experts is None:
        experts = values["n_routed_experts"]
    chosen, shared = values["num_experts_per_tok"], width * values["n_shared_experts"]
    return FeedForward(0, experts, chosen, width, shared, bool(values["mlp_bias"]))


def _qwen3_moe(values: _Values, index: int) -> FeedForward:
    experts = values.get("num_experts", "num_local_experts") or 0
    sparse = (
        index not in values.several("mlp_only_layers") and (index + 1) % values["decoder_sparse_step"] == 0
    )
    if not (experts and sparse):
        return _dense(values, index)
    return FeedForward(0, experts, values["num_experts_per_tok"], values["moe_intermediate_size"], 0, False)


def _mixtral(values: _Values, index: int) -> FeedForward:
    del index
    width, chosen = values["intermediate_size"], values["num_experts_per_tok"]
    return FeedForward(0, values["num_local_experts"], chosen, width, 0, False)


_COMMON: Mapping[str, Any] = {"tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False}

FAMILIES: dict[
    str, tuple[Mapping[str, Any], Callable[[_Values], Attention], Callable[[_Values, int], FeedForward]]
] = {
    "llama": (_COMMON, _grouped(input_bias=None, head_norms=False), _dense),
    "mistral": ({**_COMMON, "num_key_value_heads": 8}, _grouped(input_bias=False, head_norms=False), _dense),
    "qwen2": (_COMMON, _grouped(input_bias=True, head_norms=False), _dense),
    "qwen3": ({**_COMMON, "head_dim": 128}, _grouped(input_bias=None, head_norms=True), _dense),
    "qwen3_moe": (
        {**_COMMON, "decoder_sparse_step": 1},
        _grouped(input_bias=None, head_norms=True),
        _qwen3_moe,
    ),
    "mixtral": (
        {**_COMMON, "num_key_value_heads": 8},
        _grouped(input_bias=False, head_norms=False),
        _mixtral,
    ),
    "granitemoe": (_COMMON, _grouped(input_bias=None, head_norms=False), _mixtral),
    "deepseek_v2": (_COMMON, _latent, _deepseek),
    "deepseek_v3": (_COMMON, _latent, _deepseek),
}
"""By `model_type`: what transformers takes for keys that are not there, and who reads the layers."""
