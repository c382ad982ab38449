"""Multi-head latent attention through the fused kernels of `scaled_dot_product_attention`.

The keys of latent attention are wider than its values (they have a rotary part), but every fused kernel needs
equal widths: torch falls back to plain matrix products that keep all attention scores for the backward pass.
Here the values are padded with zero columns to the width of the keys. The additional output columns are zero
and are cut off. The result equals the plain products up to floating-point rounding.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_padded_values"
"""The value of `model.config._attn_implementation` for models with padded values."""


def pad_values_for_fused_kernels(model: PreTrainedModel) -> bool:
    """Pad the values in the attention of `model` if it uses `sdpa` and its values are narrower than its
    keys. Returns whether it does.
    """
    config = model.config
    keys, values = getattr(config, "qk_head_dim", 0), getattr(config, "v_head_dim", 0)
    uses_sdpa = config._attn_implementation == "sdpa"  # pyright: ignore[reportPrivateUsage] - no public name
    if not uses_sdpa or not 0 < values < keys:
        return False
    AttentionInterface.register(NAME, padded_values_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return True


def padded_values_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Like transformers' `sdpa`: query and key [n, heads, t, k] and value [n, heads, t, v]
    with v <= k give [n, t, heads, v].
    """
    width = value.shape[-1]
    padded = F.pad(value, (0, key.shape[-1] - width))
    output, _ = sdpa_attention_forward(module, query, key, padded, attention_mask, **kwargs)  # pyright: ignore[reportArgumentType]
    return output[..., :width], None
