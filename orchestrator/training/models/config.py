"""The `model` group of the config."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from orchestrator.training.settings import Settings


class ModelConfig(Settings):
    """The model that is trained."""

    name: str
    """Name of the model in reports."""
    family: Literal["deepseek_v3_from_scratch", "pretrained", "gguf_package"]
    """How the model is built. `deepseek_v3_from_scratch`: a randomly initialised DeepseekV3ForCausalLM of the
    shape in `architecture`, with a character tokenizer; `pretrained`: a Hugging Face folder at `path`;
    `gguf_package`: a GGUF file inside an installed Python package (`package`).
    """
    base_model: str | None
    """The id under which the model is published (`Qwen/Qwen3-30B-A3B`), for the model card of an export.
    null: the id is derived from the folder; models trained from scratch have none.
    """
    path: str | None
    """A Hugging Face folder with the initial model (config, weights, tokenizer). For
    `deepseek_v3_from_scratch`, null means random initialisation.
    """
    package: str | None
    """For `gguf_package`: `<distribution>:<file inside it>`."""
    architecture: dict[str, Any]
    """Arguments of the transformers config class, for models built from scratch. For a pretrained model, the
    values of its config.json that determine its size, so that `orchestrator plan` does not need the folder.
    """
    dtype: Literal["float32", "bfloat16"]
    """Precision of rollouts and of the learner's forward and backward passes
    (its master weights are float32).
    """
    context: int = Field(ge=8)
    """Maximum number of tokens of a prompt and its response together. It may
    be raised when a run is resumed.
    """
