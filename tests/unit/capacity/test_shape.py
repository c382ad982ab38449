"""Parameters: equal to those of the real models, tensor by tensor, and to the published totals."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from orchestrator.capacity.parameters import active_parameters, tensors, total_parameters
from orchestrator.capacity.shape import LatentAttention, read_shape
from orchestrator.errors import ConfigError
from tests.support.capacity_measured import (
    PUBLISHED,
    Architecture,
    parameter_sizes,
    published,
    small_architectures,
)

BASE: Architecture = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 64,
}
VARIANTS: dict[str, Architecture] = {
    **small_architectures(),
    **{name: published(name) for name in PUBLISHED},
    "llama with biases": BASE | {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "deepseek with biases": small_architectures()["deepseek_v3"] | {"attention_bias": True},
    "qwen3 with dense layers": published("qwen3_30b_a3b")
    | {"decoder_sparse_step": 2, "mlp_only_layers": [3]},
    **{kind: BASE | {"model_type": kind} for kind in ("mistral", "qwen2", "qwen3")},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_tensors_are_those_of_the_real_model(name: str) -> None:
    shape = read_shape(VARIANTS[name])
    assert sorted(size for _, size in tensors(shape)) == sorted(parameter_sizes(VARIANTS[name]))


@pytest.mark.parametrize("name", VARIANTS)
def test_missing_config_values_default_to_those_of_transformers(name: str) -> None:
    full = AutoConfig.for_model(**VARIANTS[name]).to_dict()
    assert read_shape(VARIANTS[name]) == read_shape(full)


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        # arXiv:2412.19437, abstract: 671B, 37B activated
        ("deepseek_v3", 671, 37),
        # arXiv:2405.04434, appendix B: 15.7B, 2.4B activated
        ("deepseek_v2_lite", 15.7, 2.4),
        # huggingface.co/Qwen/Qwen3-30B-A3B: 30.5B, 3.3B activated
        ("qwen3_30b_a3b", 30.5, 3.3),
        # arXiv:2401.04088, 2.1 (47B, 13B) and mistral.ai/news/mixtral-of-experts: 46.7B, 12.9B
        ("mixtral_8x7b", 46.7, 12.9),
        # huggingface.co/ibm-granite/granite-3.1-3b-a800m-base: 3.3B, 800M
        ("granite_moe", 3.3, 0.8),
    ],
)
def test_totals_match_the_published_ones(name: str, total: float, active: float) -> None:
    shape = read_shape(published(name))
    assert total_parameters(shape).total / 1e9 == pytest.approx(total, rel=0.005)
    # Some count the input embedding among the active parameters, some do not.
    parameters = active_parameters(shape)
    bounds = (parameters.without_embedding / 1e9, parameters.total / 1e9)
    assert bounds[0] * 0.97 <= active <= bounds[1] * 1.03


def test_components_add_up_and_latent_attention_caches_only_its_latents() -> None:
    shape = read_shape(published("deepseek_v3"))
    assert isinstance(shape.attention, LatentAttention)
    assert shape.attention.cached == 512 + 64
    parameters = total_parameters(shape)
    assert parameters.routed_experts == 58 * 256 * 3 * 7168 * 2048
    assert parameters.dense == 3 * 3 * 7168 * 18432
    assert parameters.head == parameters.embedding == 129280 * 7168


def test_an_unknown_family_and_a_missing_number_are_named() -> None:
    with pytest.raises(ConfigError, match="model_type: got mamba"):
        read_shape({"model_type": "mamba"})
    with pytest.raises(ConfigError, match="num_hidden_layers"):
        read_shape({"model_type": "llama", "hidden_size": 8, "vocab_size": 8, "num_attention_heads": 2})
