"""The model that is trained."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from orchestrator.training.settings import Settings


class ModelConfig(Settings):
    """The `model` group. `family` names the builder in `orchestrator.training.models`."""

    name: str
    """The name in reports."""
    family: Literal["deepseek_v3_from_scratch", "pretrained", "gguf_package"]
    """`deepseek_v3_from_scratch`: a randomly initialised DeepseekV3ForCausalLM of the shape in
    `architecture`, with a character tokenizer; `pretrained`: a Hugging Face folder at `path`; `gguf_package`:
    a GGUF file inside an installed Python package (`package`).
    """
    base_model: str | None
    """The id under which the model is published (`Qwen/Qwen3-30B-A3B`), for the model card of an export.
    null: it is derived from the folder, or the model is trained from scratch.
    """
    path: str | None
    """A Hugging Face folder to start from (config, weights, tokenizer). For `deepseek_v3_from_scratch` null
    means a random start.
    """
    package: str | None
    """For `gguf_package`: `<distribution>:<file inside it>`."""
    architecture: dict[str, Any]
    """Arguments of the transformers config class, for models built from scratch. For a pretrained model, the
    values of its config.json that decide its size: `orchestrator plan` needs no folder then.
    """
    dtype: Literal["float32", "bfloat16"]
    """Precision of rollouts and of the learner's forward and backward passes
    (its master weights are float32).
    """
    context: int = Field(ge=8)
    """The most tokens of prompt and response together. It may grow when a run is resumed."""
