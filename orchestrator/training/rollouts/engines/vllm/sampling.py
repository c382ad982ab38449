"""Translates the sampling parameters of a rollout into vLLM's, and vLLM's output into a response."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from orchestrator.training.records import Finish, SamplingParams, WeightVersion


class VersionSpan(Protocol):
    """Consecutive tokens of a rollout that were sampled with the same weights: vLLM's `WeightVersionSpan`."""

    @property
    def version(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...


class Completion(Protocol):
    """One finished rollout: vLLM's `CompletionOutput`."""

    @property
    def text(self) -> str: ...
    @property
    def token_ids(self) -> Sequence[int]: ...
    @property
    def logprobs(self) -> Any: ...  # noqa: ANN401
    @property
    def finish_reason(self) -> str | None: ...
    @property
    def stop_reason(self) -> int | str | None: ...
    @property
    def weight_versions(self) -> Sequence[VersionSpan] | None: ...


def rollout_seed(seed: int, group_id: int, member: int) -> int:
    """The seed of one rollout, below 2^63. A rollout draws the same random numbers on any worker, but vLLM's
    logits vary a little with the other rows of the batch.
    """
    digest = hashlib.blake2b(f"{seed}/{group_id}/{member}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def vllm_parameters(sampling: SamplingParams, room: int, ends: Iterable[int], seed: int) -> dict[str, Any]:
    """Keyword arguments of `vllm.SamplingParams` for one rollout of at most `room` tokens. `ends` are all
    tokens that end a rollout; vLLM's own end-of-sequence token is ignored.
    """
    return {
        "n": 1,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "stop": list(sampling.stop),
        "stop_token_ids": sorted(ends),
        "ignore_eos": True,
        "min_tokens": min(sampling.min_new_tokens, room),
        "max_tokens": room,
        "seed": seed,
        "logprobs": 0,
        "detokenize": bool(sampling.stop),
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
    }


def logprobs_of(completion: Completion) -> list[float]:
    """The log-prob of each sampled token."""
    steps: Iterable[dict[int, Any]] = completion.logprobs
    return [step[token].logprob for token, step in zip(completion.token_ids, steps, strict=True)]


def versions_of(completion: Completion) -> list[WeightVersion]:
    """The weight version of each token. Raises ValueError if vLLM does not report one for every token."""
    versions: list[WeightVersion] = []
    for span in completion.weight_versions or ():
        versions += [int(span.version)] * (span.end - span.start)
    if len(versions) != len(completion.token_ids):
        raise ValueError(f"vLLM: versions of {len(versions)} of {len(completion.token_ids)} tokens")
    return versions


def finish_of(completion: Completion) -> Finish:
    """Why the rollout ended. Raises ValueError if vLLM did not let it end."""
    if completion.finish_reason == "stop":
        return Finish.STOP
    if completion.finish_reason == "length":
        return Finish.LENGTH
    raise ValueError(f"vLLM ended a rollout: {completion.finish_reason}")


def text_before_stop(completion: Completion) -> str | None:
    """The text before the stop string that ended the rollout; None if none did."""
    return completion.text if isinstance(completion.stop_reason, str) else None
