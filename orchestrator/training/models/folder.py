"""Models in Hugging Face layout: a folder with `config.json`, safetensors and a
tokenizer. Nothing is downloaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from orchestrator.errors import ConfigError
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.models.dropout import switch_off_dropout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_architecture(config: ModelConfig) -> PreTrainedConfig:
    """Load the transformers config of the model in `config.path`, with dropout switched
    off. Raises ConfigError for `model.path` if there is none, and for `model.architecture`
    if it differs from the folder's.
    """
    folder = _existing(config, "config.json")
    try:
        architecture = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        allowed = "a folder whose config.json transformers can read"
        raise ConfigError("model.path", str(folder), allowed, str(error)) from error
    assert isinstance(architecture, PreTrainedConfig)
    _check_architecture(config, architecture)
    switch_off_dropout(architecture)
    return architecture


def load_model(config: ModelConfig) -> PreTrainedModel:
    """Load the model in `config.path` in float32. Raises ConfigError for `model.path` if there is none."""
    from transformers import PreTrainedModel

    architecture = load_architecture(config)
    require_weights(config)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(config.path), config=architecture, local_files_only=True, dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        allowed = "a folder with the weights of a causal language model"
        raise ConfigError("model.path", str(config.path), allowed, str(error)) from error
    assert isinstance(model, PreTrainedModel)
    return model


def require_weights(config: ModelConfig) -> None:
    """Raise ConfigError unless all weight files exist in `config.path`."""
    folder = _existing(config, "config.json")
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).is_file():
            names: set[str] = set(json.loads((folder / index).read_bytes())["weight_map"].values())
            missing = sorted(name for name in names if not (folder / name).is_file())
            if missing:
                reason = f"{missing[0]} is missing, {len(missing)} of {len(names)} files"
                raise ConfigError("model.path", str(folder), "a folder with all of its weights", reason)
            return
    if not any((folder / name).is_file() for name in ("model.safetensors", "pytorch_model.bin")):
        allowed = "a folder with the model's weights"
        raise ConfigError("model.path", str(folder), allowed, "model.safetensors is missing")


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerFast:
    """Load the tokenizer in `config.path`. Raises ConfigError for `model.path` if there is none."""
    folder = _existing(config, "tokenizer_config.json")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError("model.path", str(folder), "a folder with a fast tokenizer (tokenizer.json)")
    return tokenizer


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write config, safetensors and tokenizer in the layout that
    `AutoModelForCausalLM.from_pretrained(folder)` loads.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _existing(config: ModelConfig, needed: str) -> Path:
    if config.path is None:
        raise ConfigError("model.path", "null", "a folder in Hugging Face layout")
    folder = Path(config.path)
    if not folder.is_dir():
        raise ConfigError(
            "model.path",
            str(folder),
            f"an existing folder in Hugging Face layout, with {needed}",
            "no such folder",
        )
    if not (folder / needed).is_file():
        raise ConfigError("model.path", str(folder), f"a folder with {needed}", f"{needed} is missing")
    return folder


def _check_architecture(config: ModelConfig, found: PreTrainedConfig) -> None:
    """Raise ConfigError unless the shape in the config is the folder's, because a plan
    for another shape would be wrong.
    """
    for key, wanted in config.architecture.items():
        value = getattr(found, key, None)
        if value != wanted and not isinstance(wanted, dict):
            raise ConfigError(
                f"model.architecture.{key}",
                repr(wanted),
                f"{value!r}",
                f"the shape of the model in {config.path}",
            )
