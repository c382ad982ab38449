"""Switches off dropout in every model.

The learner computes probabilities in training mode, the rollout engine in evaluation mode. With dropout the
two would differ (by 0.08 nats per token on average at `attention_dropout: 0.1`), and so would two passes of
the learner over the same tokens: importance ratios would measure the noise of dropout.
"""

from __future__ import annotations

from transformers import PreTrainedConfig

_NAMES = ("dropout", "pdrop", "layerdrop", "jitter_noise")
"""Parts of the names of config keys in transformers that hold rates of training noise."""


def switch_off_dropout(architecture: PreTrainedConfig) -> list[str]:
    """Set every dropout rate (and router noise) to 0, in place, before the model is built.
    Returns the keys that were not 0.
    """
    changed: list[str] = []
    for key, value in architecture.to_dict().items():
        if any(name in key for name in _NAMES) and isinstance(value, int | float) and value:
            setattr(architecture, key, type(value)(0))
            changed.append(key)
    return changed
