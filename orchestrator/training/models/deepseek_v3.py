"""A small DeepSeek-V3 with random weights: latent attention, shared and routed experts, and a
sigmoid router with a selection bias.

The architecture is transformers' `DeepseekV3ForCausalLM` (DeepSeek-V3 technical report,
https://arxiv.org/abs/2412.19437) at a small size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import DeepseekV3Config, PreTrainedTokenizerFast

from orchestrator.errors import ConfigError
from orchestrator.training.models.characters import character_tokenizer
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.models.dropout import switch_off_dropout

if TYPE_CHECKING:
    from transformers import DeepseekV3ForCausalLM

_DERIVED = {"vocab_size", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id"}


def tokenizer(config: ModelConfig) -> PreTrainedTokenizerFast:
    """Build the character tokenizer for `config.context` tokens."""
    return character_tokenizer(config.context)


def random_start(config: ModelConfig, seed: int) -> DeepseekV3ForCausalLM:
    """Build a randomly initialised float32 model of the shape in `config.architecture`. Raises ConfigError
    for a key that the architecture does not have.
    """
    from transformers import DeepseekV3ForCausalLM

    architecture = architecture_config(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DeepseekV3ForCausalLM(architecture)


def architecture_config(config: ModelConfig) -> DeepseekV3Config:
    """Build the transformers config from `config.architecture`. The vocabulary and special tokens come from
    the tokenizer, the context from `model.context`.
    """
    known = DeepseekV3Config().to_dict()
    for key in config.architecture:
        if key in _DERIVED:
            raise ConfigError(
                f"model.architecture.{key}",
                "a value",
                "no value",
                "it is derived from the tokenizer and model.context",
            )
        if key not in known:
            raise ConfigError(f"model.architecture.{key}", "an unknown key", ", ".join(sorted(known)))
    characters = tokenizer(config)
    derived: dict[str, Any] = {
        "vocab_size": len(characters),
        "max_position_embeddings": config.context,
        "pad_token_id": characters.pad_token_id,
        "bos_token_id": characters.bos_token_id,
        "eos_token_id": characters.eos_token_id,
    }
    try:
        architecture = DeepseekV3Config(**config.architecture, **derived)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise ConfigError(
            "model.architecture",
            str(config.architecture),
            "arguments that DeepseekV3Config accepts",
            str(error),
        ) from error
    noisy = switch_off_dropout(architecture)
    if noisy:
        key = f"model.architecture.{noisy[0]}"
        raise ConfigError(key, str(config.architecture[noisy[0]]), "0", "models are trained without dropout")
    return architecture
