"""Which attention layers the engine can serve."""

from __future__ import annotations

from transformers import PreTrainedConfig

from orchestrator.errors import ConfigError


def require_full_attention(architecture: PreTrainedConfig, context: int) -> None:
    """Raise ConfigError unless every token of a sequence of `context` tokens attends to all tokens before it.
    A window of at least `context` tokens never slides.
    """
    text = architecture.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or [])
    if getattr(text, "num_attention_heads", None) is None:
        raise _refused(architecture, "it has no attention")
    windows = {
        "sliding_attention": getattr(text, "sliding_window", None),
        "chunked_attention": getattr(text, "attention_chunk_size", None),
    }
    if (
        not kinds and windows["sliding_attention"] is not None
    ):  # e.g. Mistral: all layers alike, no layer_types
        kinds = {"sliding_attention"}
    for kind in sorted(kinds - {"full_attention"}):
        window = windows.get(kind)
        if window is None:
            raise _refused(architecture, f"it has layers of the kind {kind}")
        if window < context:
            raise _refused(
                architecture,
                f"the window of its layers of the kind {kind} is {window} tokens; "
                f"model.context={window} or less never slides",
            )


def _refused(architecture: PreTrainedConfig, reason: str) -> ConfigError:
    return ConfigError(
        "rollout.engine",
        "hf",
        "an engine that can sample from this model",
        f"{architecture.model_type}: {reason}; the engine hf needs full attention in every layer",
    )
