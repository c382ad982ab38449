"""Decodes with multi-head latent attention without expanding the cache (the "absorbed" form of the
DeepSeek-V2 paper, arXiv:2405.04434, 2.1.2).

transformers caches the compressed latents c (one vector of size r per token, shared by the heads) and at
every step expands all of them to keys and values of every head. The expansion is linear, so for a single
query it can be moved to the other side of the product:

    score  = q . (W_uk c)      = (W_uk^T q) . c
    output = sum_t a_t W_uv c_t = W_uv (sum_t a_t c_t)

which costs two matrix products of size r per head instead of two per head and cached token. The result is the
same up to floating-point rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    apply_rotary_pos_emb,
    apply_rotary_pos_emb_interleave,
)


def decode_in_latent_space(model: PreTrainedModel) -> int:
    """Make every DeepSeek-V3 attention module of `model` process single-token queries in latent space.
    Returns the number of changed modules.

    The modules keep their parameters and names. Forward passes with several tokens or without
    a cache are unchanged.
    """
    attentions = [module for module in model.modules() if type(module) is DeepseekV3Attention]
    for attention in attentions:
        attention.__class__ = LatentDecodingAttention
    return len(attentions)


class LatentDecodingAttention(DeepseekV3Attention):
    """DeepSeek-V3's attention with decoding in latent space.
    `decode_in_latent_space` converts existing modules.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  (the base class declares three results and returns two)
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        **kwargs: Any,  # noqa: ANN401  (as in the base class)
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Like the base class: returns (output [n, t, hidden], None). `attention_mask` is additive [n, 1, t,
        columns], or None. transformers calls the cache `past_key_values` up to 5.23 and `cache` from 5.24 on.
        """
        known = past_key_values if cache is None else cache
        if known is None or hidden_states.shape[1] != 1:
            output, weights, *_ = super().forward(
                hidden_states, position_embeddings, attention_mask, known, **kwargs
            )
            return output, weights
        rows = hidden_states.shape[0]
        query, query_rotary, latent, key_rotary = self._project(hidden_states, position_embeddings)
        latents, keys_rotary = known.update(latent, key_rotary, self.layer_idx)
        latents, keys_rotary = latents[:, 0], keys_rotary[:, 0]  # [n, columns, r], [n, columns, rotary]

        expansion = self.kv_b_proj.weight.view(self.num_heads, -1, self.kv_lora_rank)  # [heads, nope + v, r]
        up_key, up_value = expansion[:, : self.qk_nope_head_dim], expansion[:, self.qk_nope_head_dim :]
        absorbed = torch.bmm(query.transpose(0, 1), up_key).transpose(0, 1)  # [n, heads, r]
        scores = _scores(attention_mask, absorbed, latents, self.scaling)
        scores = torch.baddbmm(scores, query_rotary, keys_rotary.transpose(1, 2), alpha=self.scaling)
        attended = torch.bmm(torch.softmax(scores, dim=-1, dtype=torch.float32).to(latents.dtype), latents)
        output = torch.bmm(attended.transpose(0, 1), up_value.transpose(1, 2))  # [heads, n, v]
        return self.o_proj(output.transpose(0, 1).reshape(rows, 1, -1)), None

    def _project(
        self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Project the query [n, heads, nope] and its rotary part [n, heads, rotary], the latent [n, 1, 1, r]
        and the rotary key [n, 1, 1, rotary].
        """
        rows = hidden_states.shape[0]
        if self.q_proj is not None:
            query = self.q_proj(hidden_states)
        else:
            assert self.q_a_proj is not None and self.q_a_layernorm is not None and self.q_b_proj is not None
            query = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_states)))
        query = query.view(rows, self.num_heads, 1, self.qk_head_dim)
        query, query_rotary = query.split([self.qk_nope_head_dim, self.qk_rope_head_dim], dim=-1)
        compressed = self.kv_a_proj_with_mqa(hidden_states)[:, None]  # [n, 1, 1, r + rotary]
        latent, key_rotary = compressed.split([self.kv_lora_rank, self.qk_rope_head_dim], dim=-1)
        rotate = apply_rotary_pos_emb_interleave if self.config.rope_interleave else apply_rotary_pos_emb
        query_rotary, key_rotary = rotate(query_rotary, key_rotary, *position_embeddings)
        return query[:, :, 0], query_rotary[:, :, 0], self.kv_a_layernorm(latent), key_rotary


def _scores(
    mask: torch.Tensor | None, query: torch.Tensor, keys: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Compute mask + scaling * query . keys, [n, heads, columns]."""
    if mask is None:
        return torch.bmm(query, keys.transpose(1, 2)) * scaling
    return torch.baddbmm(mask[:, 0].to(query.dtype), query, keys.transpose(1, 2), alpha=scaling)
