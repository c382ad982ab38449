"""The Engine port: prompts and weights in, rollouts out. One file in `engines/` for each implementation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from orchestrator.training.records import Prompt, RolloutBlock, SamplingParams, WeightVersion

NamedTensor = tuple[str, torch.Tensor]
"""A parameter under its Hugging Face name."""


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Sample `group_size` rollouts for each prompt. `group_ids` name the groups, one per prompt."""

    group_ids: Sequence[int]
    prompts: Sequence[Prompt]
    group_size: int
    sampling: SamplingParams


class Engine(Protocol):
    """Samples from a model whose weights can be replaced between requests."""

    def generate(self, request: GenerateRequest) -> RolloutBlock:
        """Run the request to its end. Raises PromptTooLongError if a prompt leaves no room in the context."""
        ...

    def load_weights(self, version: WeightVersion, tensors: Iterable[NamedTensor]) -> None:
        """Replace all weights; tokens sampled afterwards carry `version`. Consume the tensors one by one:
        each is valid only until the next one is requested, so that no second copy of the model is needed.
        """
        ...

    def weight_storage(self, name: str) -> torch.Tensor | None:
        """The memory of a weight, if slices of a new version may be written directly into it while
        `load_weights` runs or before `weights_written`. None if the engine stores weights in another form or
        has no weight of that name.
        """
        ...

    def weights_written(self, version: WeightVersion) -> None:
        """Called after the `weight_storage` of every weight has been written: like
        `load_weights` without a copy.
        """
        ...
