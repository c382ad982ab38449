"""Which model is trained."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from orchestrator.training.settings import Settings


class ModelConfig(Settings):
    """The `model` group. `family` names the builder in `orchestrator.training.models`."""

    name: str
    """What reports call it."""
    family: Literal["deepseek_v3_from_scratch", "pretrained", "gguf_package"]
    """`deepseek_v3_from_scratch`: a randomly initialised DeepseekV3ForCausalLM of the shape in
    `architecture`, with a character tokenizer; `pretrained`: a Hugging Face folder at `path`; `gguf_package`:
    a GGUF file inside an installed Python package (`package`).
    """
    path: str | None
    """A Hugging Face folder to start from (config, weights, tokenizer). For `deepseek_v3_from_scratch` null
    means a random start.
    """
    package: str | None
    """For `gguf_package`: `<distribution>:<file inside it>`."""
    architecture: dict[str, Any]
    """Arguments of the transformers config class, for models built from scratch. For a pretrained model, what
    its config.json says of its size: `orchestrator plan` reads it where the folder is not here.
    """
    dtype: Literal["float32", "bfloat16"]
    """Of rollouts, and of the learner's forward and backward (its master weights are float32)."""
    context: int = Field(ge=8)
    """The most tokens of prompt and response together."""
