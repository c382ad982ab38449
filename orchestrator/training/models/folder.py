"""Models in Hugging Face layout: a folder with `config.json`, safetensors and a tokenizer. Nothing is ever
downloaded.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from orchestrator.errors import ConfigError
from orchestrator.training.models.config import ModelConfig


def load_model(config: ModelConfig) -> PreTrainedModel:
    """The model in `config.path`, float32. Raises ConfigError naming `model.path` if there is none."""
    folder = _existing(config, "config.json")
    architecture = AutoConfig.from_pretrained(folder, local_files_only=True)
    _check_architecture(config, architecture)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except OSError as error:
        raise ConfigError(
            "model.path", str(folder), "a folder with the model's weights", str(error)
        ) from error
    assert isinstance(model, PreTrainedModel)
    return model


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerFast:
    """The tokenizer in `config.path`. Raises ConfigError naming `model.path` if there is none."""
    folder = _existing(config, "tokenizer_config.json")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError("model.path", str(folder), "a folder with a fast tokenizer (tokenizer.json)")
    return tokenizer


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write config, safetensors and tokenizer, so that plain transformers loads them:
    `AutoModelForCausalLM.from_pretrained(folder)`.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _existing(config: ModelConfig, needed: str) -> Path:
    if config.path is None:
        raise ConfigError("model.path", "null", "a folder in Hugging Face layout")
    folder = Path(config.path)
    if not folder.is_dir():
        raise ConfigError(
            "model.path", str(folder), "an existing folder in Hugging Face layout", "no such folder"
        )
    if not (folder / needed).is_file():
        raise ConfigError("model.path", str(folder), f"a folder with {needed}", f"{needed} is missing")
    return folder


def _check_architecture(config: ModelConfig, found: PreTrainedConfig) -> None:
    """A config that names a shape must be the folder's: a plan made for another shape would be wrong."""
    for key, wanted in config.architecture.items():
        value = getattr(found, key, None)
        if value != wanted and not isinstance(wanted, dict):
            raise ConfigError(
                f"model.architecture.{key}",
                repr(wanted),
                f"{value!r}",
                f"the shape of the model in {config.path}",
            )
