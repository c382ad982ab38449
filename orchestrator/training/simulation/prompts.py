"""A fake source of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.training.records import Prompt


class CountingPrompts:
    """An endless `PromptSource`. Prompt i is named `sim/train/i`. With `epoch`, so many prompts repeat."""

    def __init__(self, epoch: int | None = None) -> None:
        self._position, self._epoch = 0, epoch

    def take(self, count: int) -> Sequence[Prompt]:
        first, self._position = self._position, self._position + count
        indices = range(first, self._position)
        return [self.get(f"sim/train/{index % self._epoch if self._epoch else index}") for index in indices]

    def heldout(self, count: int) -> Sequence[Prompt]:
        """`sim/heldout/i`."""
        return [self.get(f"sim/heldout/{index}") for index in range(count)]

    def get(self, prompt_id: str) -> Prompt:
        """A prompt whose text is its own id."""
        return Prompt(prompt_id, prompt_id, {})

    def state_dict(self) -> Mapping[str, Any]:
        return {"position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._position = int(state["position"])
