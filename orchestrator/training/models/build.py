"""From a `ModelConfig` to a model and its tokenizer: the only way in which models are built."""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from orchestrator.errors import ConfigError
from orchestrator.training.models import deepseek_v3, folder, gguf_package
from orchestrator.training.models.config import ModelConfig


def build_model(config: ModelConfig, seed: int, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model on the CPU, in evaluation mode, with its parameters in `dtype` (None: the config's). Buffers
    keep their own precision. Dropout is off, also in training mode.

    `seed` decides a random start and nothing else; torch's global generator is not touched. Two calls with
    the same config and seed give bit-equal weights. Raises ConfigError for a missing folder, package or file
    and for a context that the model can't hold.
    """
    if config.path is not None or config.family == "pretrained":
        model = folder.load_model(config)
    elif config.family == "deepseek_v3_from_scratch":
        model = deepseek_v3.random_start(config, seed)
    else:
        model = gguf_package.load_model(config)
    _require_context(config, model.config)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype or getattr(torch, config.dtype))
    model.config.dtype = dtype or getattr(torch, config.dtype)
    return model.eval()


def build_tokenizer(config: ModelConfig) -> PreTrainedTokenizerFast:
    """The tokenizer of that model. Raises ConfigError for a missing folder, package or file."""
    if config.path is not None or config.family == "pretrained":
        return folder.load_tokenizer(config)
    if config.family == "deepseek_v3_from_scratch":
        return deepseek_v3.tokenizer(config)
    return gguf_package.load_tokenizer(config)


def read_architecture(config: ModelConfig) -> PreTrainedConfig | None:
    """The model's transformers config, without reading weights; None for a GGUF file, whose header takes
    seconds to read.

    Raises ConfigError as `build_model` does.
    """
    if config.path is not None or config.family == "pretrained":
        return folder.load_architecture(config)
    if config.family == "deepseek_v3_from_scratch":
        return deepseek_v3.architecture_config(config)
    return None


def check_model(config: ModelConfig) -> None:
    """Raise ConfigError for a model that `build_model` would refuse, without reading its weights."""
    architecture = read_architecture(config)
    if architecture is None:
        gguf_package.locate(config)
        return
    _require_context(config, architecture)
    if config.path is not None:
        folder.require_weights(config)


def _require_context(config: ModelConfig, architecture: PreTrainedConfig) -> None:
    limit = getattr(architecture.get_text_config(), "max_position_embeddings", None)
    if limit is not None and config.context > limit:
        raise ConfigError(
            "model.context", str(config.context), f"at most {limit}", "the model was built for no more"
        )
