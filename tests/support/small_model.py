"""A DeepSeek-V3 model small enough for unit tests: two layers, the second one with four experts."""

from __future__ import annotations

from orchestrator.training.models.config import ModelConfig


def small_model(context: int, initializer_range: float) -> ModelConfig:
    """The config of the model. Large initial weights give a distribution in which
    a wrong position or mask shows.
    """
    return ModelConfig(
        name="small",
        family="deepseek_v3_from_scratch",
        base_model=None,
        path=None,
        package=None,
        architecture={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "first_k_dense_replace": 1,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "q_lora_rank": None,
            "kv_lora_rank": 8,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "n_group": 1,
            "topk_group": 1,
            "initializer_range": initializer_range,
        },
        dtype="float32",
        context=context,
    )
