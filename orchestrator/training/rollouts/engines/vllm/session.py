"""A running vLLM: samples many rollouts at the same time and takes new weights between two tokens."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from orchestrator.errors import WorkerLostError
from orchestrator.training.records import Finish, WeightVersion
from orchestrator.training.rollouts.engines.vllm.sampling import (
    Completion,
    finish_of,
    logprobs_of,
    text_before_stop,
    versions_of,
)
from orchestrator.training.rollouts.engines.vllm.weights import StagedWeights, stage
from orchestrator.training.tensors.buckets import NamedTensor

DEAD = "EngineDeadError"
"""The name of vLLM's exception after one of its processes died."""


class Output(Protocol):
    """vLLM's `RequestOutput`."""

    @property
    def outputs(self) -> Sequence[Completion]: ...


class AsyncLLM(Protocol):
    """The methods of vLLM's `AsyncLLM` that are used here."""

    def generate(
        self,
        prompt: Mapping[str, Any],
        sampling_params: Any,  # noqa: ANN401
        request_id: str,
    ) -> AsyncIterator[Output]: ...

    async def pause_generation(
        self, *, mode: Literal["abort", "wait", "keep"], clear_cache: bool
    ) -> None: ...

    async def resume_generation(self) -> None: ...

    async def collective_rpc(
        self, method: str, timeout: float | None, args: tuple[Any, ...]
    ) -> list[Any]: ...

    async def update_weight_version(self, new_version: str) -> None: ...

    def shutdown(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Rollout:
    """One finished rollout, with the log-prob and the weight version of each token."""

    tokens: list[int]
    logprobs: list[float]
    versions: list[WeightVersion]
    finish: Finish
    text: str | None
    """Its text, if a stop string ended it; None: what its tokens decode to."""


class VllmSession:
    """Before the first `load` there are no weights to sample with. `parameters` builds vLLM's
    `SamplingParams`.

    The rollouts of a prompt share its prefill through vLLM's prefix cache. Cached blocks belong to a version:
    each request has the version at its start as cache salt, so that it never reads keys and values of older
    weights, also while rollouts of older versions are still running.
    """

    def __init__(self, llm: AsyncLLM, parameters: Callable[[Mapping[str, Any]], Any]) -> None:
        self._llm, self._parameters = llm, parameters
        self._version: WeightVersion | None = None
        self._ids = itertools.count()

    @property
    def version(self) -> WeightVersion | None:
        """The version that rollouts start with now; None before the first `load`."""
        return self._version

    async def sample(self, prompt: Sequence[int], rollouts: Sequence[Mapping[str, Any]]) -> list[Rollout]:
        """Sample one rollout of `prompt` for each set of parameters. Cancelling the call aborts them."""
        if self._version is None:
            raise RuntimeError("vLLM: sampling before the first weights were loaded")
        tasks = [asyncio.ensure_future(self._sample_one(prompt, each)) for each in rollouts]
        try:
            with _lost_if_dead():
                return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def load(self, version: WeightVersion, tensors: Iterable[NamedTensor], *, recompute: bool) -> None:
        """Replace all weights. Running rollouts go on with the new ones, with their KV cache as it is, or
        recomputed if `recompute` is set.

        Generation continues while `tensors` are read, in a thread, and pauses for the load itself. If the
        load fails, the engine stays paused, because its weights are incomplete.
        """
        weights = await asyncio.to_thread(stage, tensors)
        try:
            with _lost_if_dead():
                await self._replace(version, weights, recompute)
        finally:
            weights.close()

    def close(self) -> None:
        """End vLLM's processes."""
        self._llm.shutdown()

    async def _replace(self, version: WeightVersion, weights: StagedWeights, recompute: bool) -> None:
        # Running rollouts hold blocks of the cache, which vLLM does not clear unless they are recomputed.
        await self._llm.pause_generation(mode="keep", clear_cache=recompute)
        arguments = (weights.path, weights.size, [tuple(tensor) for tensor in weights.tensors])
        await self._llm.collective_rpc("load_staged_weights", None, arguments)
        await self._llm.update_weight_version(str(version))
        self._version = version
        await self._llm.resume_generation()

    async def _sample_one(self, prompt: Sequence[int], parameters: Mapping[str, Any]) -> Rollout:
        request = {"prompt_token_ids": list(prompt), "cache_salt": str(self._version)}
        last: Output | None = None
        async for output in self._llm.generate(request, self._parameters(parameters), str(next(self._ids))):
            last = output
        if last is None:
            raise RuntimeError("vLLM: a request ended without an output")
        (completion,) = last.outputs
        return Rollout(
            list(completion.token_ids),
            logprobs_of(completion),
            versions_of(completion),
            finish_of(completion),
            text_before_stop(completion),
        )


@contextlib.contextmanager
def _lost_if_dead() -> Generator[None]:
    """Raise WorkerLostError instead of vLLM's own error if one of its processes died."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ == DEAD:
            raise WorkerLostError("vllm", "a process of vLLM died") from error
        raise
