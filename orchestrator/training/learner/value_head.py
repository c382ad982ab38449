"""A value head: one linear layer that reads the hidden state from which the next token is predicted, and
estimates the reward that is still to come. It shares all other layers with the policy.

The head is part of the learner's model and of its checkpoints, under names that begin with `value_head.`. It
is neither published to rollout workers nor exported.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

NAME = "value_head"


class ValueHead(nn.Linear):
    """Hidden states [T, H] of any dtype give values [T] float32. The weights are zero at the start, so that
    every rank begins with the same head, and every value is 0.
    """

    def __init__(self, hidden: int, dtype: torch.dtype) -> None:
        super().__init__(hidden, 1, dtype=dtype)

    def reset_parameters(self) -> None:
        """Called by the constructor."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """In float32, because bfloat16 values would be too coarse for advantages."""
        return functional.linear(input.float(), self.weight.float(), self.bias.float()).squeeze(-1)


class ValueReader:
    """Adds a value head to a model and computes the values of the tokens that a `TokenScorer` scores.

    It must be created after the scorer, which selects the hidden states of the trained tokens, and before the
    model is handed to DeepSpeed. The head runs inside the model's forward pass, because that is where
    its weights are gathered at ZeRO stage 3.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Module):
            raise TypeError(f"{type(model).__name__} has no output head whose input a value head could read")
        self._head = ValueHead(model.config.get_text_config().hidden_size, model.dtype)
        self._values: Tensor | None = None
        model.add_module(NAME, self._head)
        head.register_forward_pre_hook(self._read)

    def take(self) -> Tensor:
        """The values [T] float32 of the last forward pass, with gradient; each can be taken once."""
        values, self._values = self._values, None
        assert values is not None, "values are taken after a forward pass"
        return values

    def _read(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        del head
        self._values = self._head(inputs[0])


def is_value_head(name: str) -> bool:
    """Whether the parameter of that name belongs to a value head, not to the model that is published."""
    return name.startswith(f"{NAME}.")
