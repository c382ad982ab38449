"""A tiny seeded model of each mixture-of-experts family: two layers, 8 experts, 2 per token; float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GraniteMoeConfig,
    GraniteMoeForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

VOCABULARY = 48

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_DEEPSEEK: dict[str, Any] = _SHAPE | {
    "intermediate_size": 64,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
"""Latent attention; a dense layer, then one of experts with a shared expert."""
_GROUPED: dict[str, Any] = _SHAPE | {"num_key_value_heads": 2, "head_dim": 8}


def _with(shape: Mapping[str, Any], **more: object) -> dict[str, Any]:
    return {**shape, **more}


def tiny_moe() -> PreTrainedModel:
    """DeepSeek-V3: sigmoid router with a selection bias, one group of experts."""
    shape = _with(_DEEPSEEK, norm_topk_prob=True, n_group=1, topk_group=1, routed_scaling_factor=1.0)
    return DeepseekV3ForCausalLM(DeepseekV3Config(**shape))


def deepseek_v3() -> PreTrainedModel:
    """DeepSeek-V3 as published: experts in 4 groups of which a token may use 2, weights scaled by 2.5."""
    shape = _with(_DEEPSEEK, norm_topk_prob=True, n_group=4, topk_group=2, routed_scaling_factor=2.5)
    return DeepseekV3ForCausalLM(DeepseekV3Config(**shape))


def deepseek_v2() -> PreTrainedModel:
    """DeepSeek-V2: softmax router, group-limited, weights scaled and not normalised."""
    groups = _with(_DEEPSEEK, topk_method="group_limited_greedy", n_group=4, topk_group=2)
    shape = _with(groups, norm_topk_prob=False, routed_scaling_factor=2.0)
    return DeepseekV2ForCausalLM(DeepseekV2Config(**shape))


def qwen3_moe() -> PreTrainedModel:
    """Qwen3-MoE: softmax router, normalised weights, grouped-query attention."""
    shape = _with(_GROUPED, moe_intermediate_size=24, num_experts=8, norm_topk_prob=True)
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape))


def mixtral() -> PreTrainedModel:
    """Mixtral: softmax router, normalised weights."""
    shape = _with(_GROUPED, intermediate_size=24, num_local_experts=8)
    return MixtralForCausalLM(MixtralConfig(**shape))


def granite_moe() -> PreTrainedModel:
    """Granite-MoE: softmax over the chosen experts; multipliers of embeddings, residuals, logits."""
    shape = _with(_SHAPE, num_key_value_heads=2, intermediate_size=24, num_local_experts=8)
    shape = _with(shape, embedding_multiplier=3.0, residual_multiplier=0.5, logits_scaling=2.0)
    return GraniteMoeForCausalLM(GraniteMoeConfig(**shape, attention_multiplier=0.3))


MODELS: Mapping[str, Callable[[], PreTrainedModel]] = MappingProxyType(
    {build.__name__: build for build in (tiny_moe, deepseek_v3, deepseek_v2, qwen3_moe, mixtral, granite_moe)}
)


def build(name: str, seed: int = 0) -> PreTrainedModel:
    """Build the model of that name. The weights only depend on the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name]()
