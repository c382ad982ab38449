"""Dropout is off in every mode: two passes over the same tokens agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, MixtralConfig, PreTrainedConfig

from orchestrator.config.compose import compose
from orchestrator.errors import ConfigError
from orchestrator.training.models.build import build_model
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.models.dropout import switch_off_dropout
from tests.fakes.chat_models import chat_tokenizer, write_llama


def test_dropout_of_a_pretrained_model_is_switched_off(tmp_path: Path) -> None:
    config = ModelConfig(
        name="x",
        family="pretrained",
        base_model=None,
        path=str(write_llama(tmp_path, chat_tokenizer(), attention_dropout=0.5)),
        package=None,
        architecture={},
        dtype="float32",
        context=64,
    )
    model = build_model(config, seed=0).train()
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert torch.equal(model(ids).logits, model.eval()(ids).logits)


@pytest.mark.parametrize(
    ("architecture", "keys"),
    [
        (GPT2Config(), {"attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout"}),
        (
            MixtralConfig(router_jitter_noise=0.1, attention_dropout=0.2),
            {"router_jitter_noise", "attention_dropout"},
        ),
        (MixtralConfig(), set()),
    ],
)
def test_all_noise_rates_are_found(architecture: PreTrainedConfig, keys: set[str]) -> None:
    assert set(switch_off_dropout(architecture)) == keys
    assert not any(getattr(architecture, key) for key in keys)


def test_configured_dropout_is_rejected() -> None:
    config = compose("grpo", ["+model.architecture.attention_dropout=0.1"]).model
    with pytest.raises(ConfigError, match=r"model\.architecture\.attention_dropout: got 0\.1, allowed: 0"):
        build_model(config, seed=0)
