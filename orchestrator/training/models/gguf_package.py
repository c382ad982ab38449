"""A pretrained model that an installed Python package carries as a GGUF file: real weights without a
download.

transformers dequantises the file; what results is an ordinary model that trains and exports like any other.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from orchestrator.errors import ConfigError
from orchestrator.training.models.config import ModelConfig


def load_model(config: ModelConfig) -> PreTrainedModel:
    """The model, dequantised to float32. Raises ConfigError naming `model.package` if package, file or `gguf`
    is missing.
    """
    file = locate(config)
    loaded = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    assert isinstance(loaded, PreTrainedModel)
    # A fresh model of the same class takes the weights over: the loaded one remembers that it was quantised,
    # and an export that says so would not load in plain transformers.
    architecture = type(loaded.config).from_dict(
        {
            key: value
            for key, value in loaded.config.to_dict().items()
            if key not in {"quantization_config", "_name_or_path"}
        }
    )
    with torch.device("meta"):
        model = type(loaded)(architecture)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    for name, buffer in loaded.named_buffers():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, buffer)
    model.generation_config = loaded.generation_config
    return model


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerFast:
    """The tokenizer inside the file, with its chat template."""
    file = locate(config)
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


def locate(config: ModelConfig) -> Path:
    """Where the GGUF file lies. `config.package` is `<distribution>:<file inside it>`."""
    if not config.package or ":" not in config.package:
        raise ConfigError("model.package", repr(config.package), "<distribution>:<file inside it>")
    name, inside = config.package.split(":", 1)
    try:
        file = Path(str(distribution(name).locate_file(inside)))
    except PackageNotFoundError as error:
        raise ConfigError(
            "model.package", name, "an installed distribution", f"pip install {name}"
        ) from error
    if not file.is_file():
        raise ConfigError("model.package", inside, f"a file of the distribution {name}")
    for needed in ("gguf", "accelerate"):
        if importlib.util.find_spec(needed) is None:
            raise ConfigError(
                "model.package", config.package, f"a Python with `{needed}`", f"pip install {needed}"
            )
    return file
