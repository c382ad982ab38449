"""The Engine port: a session that samples groups and takes new weights while it runs.

An engine works on many groups at the same time, and each of them is returned when its last rollout has ended.
Weights can be replaced between two tokens; every token records the version it was sampled with. There is one
package in `engines/` for each implementation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.training.records import Finish, Prompt, SamplingParams, WeightVersion
from orchestrator.training.tensors.buckets import Bucket

NamedTensor = tuple[str, torch.Tensor]
"""A parameter under its Hugging Face name."""


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """Sample one group: `group_size` rollouts for `prompt`. `group_id` decides its random numbers."""

    group_id: int
    prompt: Prompt
    group_size: int
    sampling: SamplingParams
    expected_tokens: int = 0
    """How many tokens the group will probably have; 0: unknown. An engine that cannot start all groups at
    once should start the longest first.
    """


@dataclass(frozen=True, slots=True)
class Response:
    """One rollout of t tokens."""

    tokens: NDArray[np.int32]  # [t]
    logprobs: NDArray[np.float32]  # [t]
    versions: NDArray[np.int32]  # [t]
    finish: Finish
    text: str
    """The decoded tokens, without those that end the rollout and without its stop string."""
    sampled: NDArray[np.bool_] | None = field(default=None, repr=False)  # [t]
    """False for tokens that were forced instead of sampled (`thinking_token_budget`). None: all were sampled.
    """
    routes: NDArray[np.int16] | None = field(default=None, repr=False)  # [t, R, k]: see `RolloutBlock`


@dataclass(frozen=True, slots=True)
class SampledGroup:
    """The result of a `SampleRequest`: one response per member, in order."""

    request: SampleRequest
    prompt_tokens: Sequence[int]
    responses: tuple[Response, ...]
    limit: int
    """The most tokens that a response could have: `max_new_tokens`, or what the context has room for."""
    prefill: str = ""
    """The beginning of the response that the rendered prompt already contains."""
    prompt_routes: NDArray[np.int16] | None = field(default=None, repr=False)  # [prompt tokens, R, k]


class Engine(Protocol):
    """Samples from a model whose weights can be replaced at any time."""

    async def sample(self, request: SampleRequest) -> SampledGroup:
        """Sample one group to its end. Many calls may be in progress at once; they share the engine. If a
        call is cancelled, its rollouts are dropped.

        Raises PromptTooLongError if the prompt leaves no room in the context.
        """
        ...

    async def update_weights(
        self, version: WeightVersion, buckets: Iterable[Bucket], *, recompute: bool
    ) -> None:
        """Replace all weights between two tokens; tokens sampled afterwards carry `version`. Running rollouts
        continue with the keys and values that they have, or, with `recompute`, with recomputed ones.

        Consume the buckets one by one: each is valid only until the next one is requested, so that no second
        copy of the model is needed. The caller starts one update after the other. Raises ValueError if the
        weights are not those of the model; the engine then holds a mixture of two versions and must not
        sample before another update.
        """
        ...


class WeightTarget(Protocol):
    """A model in this process whose weights are replaced in place; `WeightLoader` does it."""

    def load_weights(self, version: WeightVersion, tensors: Iterable[NamedTensor]) -> None:
        """Replace all weights; tokens sampled afterwards carry `version`. Consume the tensors one by one:
        each is valid only until the next one is requested.
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
