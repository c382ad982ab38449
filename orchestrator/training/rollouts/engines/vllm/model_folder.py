"""The folder that vLLM reads a model's architecture and tokenizer from. It needs no weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from orchestrator.training.models import gguf_package
from orchestrator.training.models.build import read_architecture
from orchestrator.training.models.config import ModelConfig


def read_config(model: ModelConfig) -> PreTrainedConfig:
    """The model's transformers config. Takes seconds for a GGUF file, whose header must be read."""
    found = read_architecture(model)
    if found is None:
        file = gguf_package.locate(model)
        found = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
        assert isinstance(found, PreTrainedConfig)
    return found


def model_folder(
    model: ModelConfig, architecture: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast, scratch: Path
) -> Path:
    """A folder in Hugging Face layout: that of the model, or one written to `scratch`, without weights."""
    if model.path is not None:
        return Path(model.path)
    architecture.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[architecture.model_type]]
    architecture.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    return scratch


def declared_stops(model: ModelConfig, architecture: PreTrainedConfig) -> int | Sequence[int] | None:
    """The stop tokens of the model's generation config, as `build_model` would find them with the weights."""
    if model.path is not None and (Path(model.path) / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(model.path, local_files_only=True).eos_token_id
    return GenerationConfig.from_model_config(architecture).eos_token_id
