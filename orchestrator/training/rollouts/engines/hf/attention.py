"""What the layers of a model attend to, and which models the engine can therefore serve."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig

from orchestrator.errors import ConfigError
from orchestrator.training.models.build import read_architecture
from orchestrator.training.models.config import ModelConfig

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"


@dataclass(frozen=True, slots=True)
class LayerKinds:
    """The kinds of attention layers of a model, under transformers' names."""

    windows: dict[str, int | None]
    """How many tokens, including itself, a token attends to in layers of a kind; None: all before it."""
    by_layer: bool
    """Whether the model's forward takes one mask for each kind, instead of one for all layers."""

    @property
    def is_full(self) -> bool:
        """Whether every token attends to all tokens before it in every layer."""
        return not any(self.windows.values())


def layer_kinds(architecture: PreTrainedConfig, context: int) -> LayerKinds:
    """The kinds of layers in sequences of at most `context` tokens, where a window of at least `context`
    tokens never slides. Raises ConfigError for a model with other layers than attention, or with chunks of
    fewer than `context` tokens.
    """
    text = architecture.get_text_config()
    if getattr(text, "num_attention_heads", None) is None:
        raise _refused(architecture, "it has no attention")
    layer_types = getattr(text, "layer_types", None)
    kinds = set(layer_types or [])
    window = getattr(text, "sliding_window", None)
    if not kinds:  # e.g. Mistral: all layers are alike
        kinds = {FULL if window is None else SLIDING}
    windows: dict[str, int | None] = {}
    for kind in sorted(kinds):
        width = {FULL: context, SLIDING: window, CHUNKED: getattr(text, "attention_chunk_size", None)}.get(
            kind
        )
        if width is None:
            raise _refused(architecture, f"it has layers of the kind {kind}")
        if kind == CHUNKED and width < context:
            raise _refused(
                architecture,
                f"its layers of the kind {kind} have chunks of {width} tokens; "
                f"model.context={width} or less never needs a second one",
            )
        windows[kind] = width if width < context else None
    return LayerKinds(windows, by_layer=bool(layer_types))


def check(model: ModelConfig) -> None:
    """Raise ConfigError for a model that the engine can't serve, without reading its weights."""
    architecture = read_architecture(model)
    if architecture is not None:
        layer_kinds(architecture, model.context)


def _refused(architecture: PreTrainedConfig, reason: str) -> ConfigError:
    return ConfigError(
        "rollout.engine",
        "hf",
        "an engine that can sample from this model",
        f"{architecture.model_type}: {reason}; the engine hf needs attention with a key-value cache in every "
        "layer",
    )
