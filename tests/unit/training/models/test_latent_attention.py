"""Decoding in latent space gives the same result as transformers' own attention."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from orchestrator.training.models.build import build_model
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.models.latent_attention import LatentDecodingAttention, decode_in_latent_space

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 2,
    "intermediate_size": 32,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "initializer_range": 0.3,
}


def model_of(**architecture: Any) -> PreTrainedModel:
    config = ModelConfig(
        name="latent",
        family="deepseek_v3_from_scratch",
        base_model=None,
        path=None,
        package=None,
        architecture=SHAPE | architecture,
        dtype="float32",
        context=32,
    )
    return build_model(config, seed=0)


@torch.no_grad()
def decode(model: PreTrainedModel, ids: torch.Tensor, padding: int) -> torch.Tensor:
    """Logits of a 6-token prefill and one forward for each token after it; row 1 is left-padded."""
    cache = DynamicCache(config=model.config)
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits: list[torch.Tensor] = []
    for start, end in [(0, 6), *itertools.pairwise(range(6, ids.shape[1] + 1))]:
        output = model(
            ids[:, start:end],
            attention_mask=mask[:, :end],
            position_ids=positions[:, start:end],
            past_key_values=cache,
        )
        logits.append(output.logits[:, -1])
    return torch.stack(logits)


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("q_lora_rank", [None, 10])
@pytest.mark.parametrize("rope_interleave", [True, False])
def test_logits_equal_those_of_the_expanded_cache(
    padding: int, q_lora_rank: int | None, rope_interleave: bool
):
    ids = torch.randint(7, 103, (2, 12), generator=torch.Generator().manual_seed(0))
    plain = model_of(q_lora_rank=q_lora_rank, rope_interleave=rope_interleave)
    latent = model_of(q_lora_rank=q_lora_rank, rope_interleave=rope_interleave)
    # The mask of transformers' eager attention is additive, as the engine's is.
    plain.set_attn_implementation("eager")
    latent.set_attn_implementation("eager")
    assert decode_in_latent_space(latent) == 2
    torch.testing.assert_close(
        decode(latent, ids, padding), decode(plain, ids, padding), atol=1e-5, rtol=1e-4
    )


def test_the_parameters_keep_their_names():
    plain, latent = model_of(q_lora_rank=None), model_of(q_lora_rank=None)
    decode_in_latent_space(latent)
    assert list(latent.state_dict()) == list(plain.state_dict())
    assert sum(isinstance(module, LatentDecodingAttention) for module in latent.modules()) == 2
