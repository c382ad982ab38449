from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DeepseekV3ForCausalLM, LlamaConfig, LlamaForCausalLM

from orchestrator.config.compose import compose
from orchestrator.training.models.build import build_model
from orchestrator.training.models.fused_attention import NAME, pad_values_for_fused_kernels


@pytest.fixture
def model() -> DeepseekV3ForCausalLM:
    built = build_model(compose("grpo").model, seed=0)
    assert isinstance(built, DeepseekV3ForCausalLM)
    return built


def ids() -> torch.Tensor:
    return torch.randint(7, 100, (3, 17), generator=torch.Generator().manual_seed(0))


def test_padded_values_change_neither_the_logits_nor_the_gradients(model: DeepseekV3ForCausalLM) -> None:
    def logits_and_gradients() -> list[torch.Tensor]:
        model.zero_grad()
        logits = model(input_ids=ids(), use_cache=False).logits
        torch.log_softmax(logits, dim=-1)[..., 5].sum().backward()
        return [
            logits.detach(),
            *(parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None),
        ]

    plain = logits_and_gradients()
    assert pad_values_for_fused_kernels(model)
    padded = logits_and_gradients()
    assert len(plain) == len(padded) > 10
    for before, after in zip(plain, padded, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_padded_values_use_a_fused_kernel(model: DeepseekV3ForCausalLM) -> None:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        with pytest.raises(RuntimeError):
            model(input_ids=ids(), use_cache=False)
        pad_values_for_fused_kernels(model)
        model(input_ids=ids(), use_cache=False)


def test_padding_on_the_right_needs_no_mask(model: DeepseekV3ForCausalLM) -> None:
    pad_values_for_fused_kernels(model)
    short = ids()[:1, :9]
    alone = model(input_ids=short, use_cache=False).logits
    beside = model(input_ids=torch.nn.functional.pad(short, (0, 8)), use_cache=False).logits
    torch.testing.assert_close(beside[:, :9], alone, rtol=1e-4, atol=1e-5)


def test_other_attention_is_not_changed(model: DeepseekV3ForCausalLM) -> None:
    model.set_attn_implementation("eager")
    assert not pad_values_for_fused_kernels(model)
    assert model.config._attn_implementation == "eager"  # pyright: ignore[reportPrivateUsage]
    shape: dict[str, Any] = {
        "vocab_size": 16,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
    }
    llama = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2))
    assert not pad_values_for_fused_kernels(llama)


def test_the_saved_config_does_not_mention_the_padding(model: DeepseekV3ForCausalLM) -> None:
    assert pad_values_for_fused_kernels(model)
    assert NAME not in model.config.to_json_string(use_diff=False)
