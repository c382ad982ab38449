"""The vLLM engine's session, on a fake of `AsyncLLM`: versions, cache salts, updates, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from orchestrator.errors import WorkerLostError
from orchestrator.training.records import Finish
from orchestrator.training.rollouts.engines.vllm.session import VllmSession
from orchestrator.training.rollouts.engines.vllm.weights import read_staged


@dataclass
class Span:
    version: str
    start: int
    end: int


@dataclass
class Logprob:
    logprob: float


@dataclass
class Completion:
    token_ids: list[int]
    weight_versions: list[Span]
    text: str = ""
    finish_reason: str | None = "length"
    stop_reason: int | str | None = None

    @property
    def logprobs(self) -> list[dict[int, Logprob]]:
        return [{token: Logprob(-float(token))} for token in self.token_ids]


@dataclass
class Output:
    outputs: Sequence[Completion]


@dataclass
class FakeLLM:
    """Samples the tokens 0, 1, 2, ... of each request, one for each permit, unless it is paused."""

    calls: list[Any] = field(default_factory=list)
    prompts: list[Mapping[str, Any]] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    running: int = 0
    version: str = "default"
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    ends_with: tuple[str | None, int | str | None, str] = ("length", None, "")
    fails: bool = False
    permits: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(10_000))
    sampled: int = 0

    async def generate(
        self, prompt: Mapping[str, Any], sampling_params: Mapping[str, Any], request_id: str
    ) -> AsyncIterator[Output]:
        self.prompts.append(prompt)
        await self.ready.wait()
        self.running += 1
        versions: list[str] = []
        try:
            while len(versions) < sampling_params["max_tokens"]:
                await self.permits.acquire()
                await self.ready.wait()
                versions.append(self.version)
                self.sampled += 1
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.aborted.append(request_id)
            raise
        finally:
            self.running -= 1
        starts = [i for i, version in enumerate(versions) if i == 0 or version != versions[i - 1]]
        spans = [
            Span(versions[start], start, end)
            for start, end in zip(starts, [*starts[1:], len(versions)], strict=True)
        ]
        reason, stop_reason, text = self.ends_with
        yield Output([Completion(list(range(len(versions))), spans, text, reason, stop_reason)])

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        self.calls.append(("pause", mode, clear_cache))
        self.ready.clear()

    async def resume_generation(self) -> None:
        self.calls.append("resume")
        self.ready.set()

    async def collective_rpc(self, method: str, timeout: float | None, args: tuple[Any, ...]) -> list[int]:
        assert method == "load_staged_weights" and not self.ready.is_set()
        if self.fails:
            raise ValueError("the weights lack 1 parameters")
        self.weights = {name: tensor.clone() for name, tensor in read_staged(*args)}
        self.calls.append("load")
        return [len(self.weights)]

    async def update_weight_version(self, new_version: str) -> None:
        self.version = new_version
        self.calls.append(new_version)

    def shutdown(self) -> None:
        self.calls.append("shutdown")


WEIGHTS = [
    ("a", torch.arange(6, dtype=torch.float32).view(2, 3)),
    ("b", torch.tensor([1.5, -2.0], dtype=torch.bfloat16)),
    ("c", torch.tensor(3, dtype=torch.int64)),
]


def parameters(tokens: int) -> Mapping[str, Any]:
    return {"max_tokens": tokens}


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def started() -> tuple[FakeLLM, VllmSession]:
    """A session that was told to load version 3."""
    llm = FakeLLM()
    session = VllmSession(llm, lambda keywords: keywords)
    await session.load(3, WEIGHTS, recompute=False)
    return llm, session


def test_weights_arrive_bit_for_bit_before_the_engine_goes_on() -> None:
    async def body() -> None:
        llm, session = await started()
        assert llm.calls == [("pause", "keep", False), "load", "3", "resume"]
        assert session.version == 3
        assert [(name, tensor.dtype, tensor.shape) for name, tensor in llm.weights.items()] == [
            (name, tensor.dtype, tensor.shape) for name, tensor in WEIGHTS
        ]
        assert all(torch.equal(llm.weights[name], tensor) for name, tensor in WEIGHTS)

    asyncio.run(body())


def test_the_rollouts_of_a_prompt_are_requested_together_under_the_salt_of_their_version() -> None:
    async def body() -> None:
        llm, session = await started()
        short, long = await session.sample([7, 8], [parameters(2), parameters(3)])
        assert llm.prompts == [{"prompt_token_ids": [7, 8], "cache_salt": "3"}] * 2
        assert (short.tokens, short.logprobs, short.versions) == ([0, 1], [0.0, -1.0], [3, 3])
        assert (long.tokens, long.finish, long.text) == ([0, 1, 2], Finish.LENGTH, None)

    asyncio.run(body())


def test_sampling_before_the_first_weights_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="before the first weights"):
        asyncio.run(VllmSession(FakeLLM(), dict).sample([1], [parameters(1)]))


@pytest.mark.parametrize("recompute", [False, True])
def test_running_rollouts_go_on_with_the_new_weights(recompute: bool) -> None:
    async def body() -> None:
        llm, session = await started()
        llm.permits = asyncio.Semaphore(5)
        running = asyncio.ensure_future(session.sample([1], [parameters(40)]))
        while llm.sampled < 5:
            await asyncio.sleep(0)
        loading = asyncio.ensure_future(session.load(4, WEIGHTS, recompute=recompute))
        while ("pause", "keep", recompute) not in llm.calls[4:]:
            await asyncio.sleep(0)
        for _ in range(36):
            llm.permits.release()
        await loading
        (rollout,) = await running
        assert {version: rollout.versions.count(version) for version in rollout.versions} == {3: 5, 4: 35}
        assert rollout.versions == sorted(rollout.versions)
        await session.sample([1], [parameters(1)])
        assert llm.prompts[-1]["cache_salt"] == "4"

    asyncio.run(body())


def test_generation_goes_on_while_weights_are_read() -> None:
    async def body() -> None:
        llm, session = await started()
        running = asyncio.ensure_future(session.sample([1], [parameters(100)]))
        loop, paused_during_read = asyncio.get_running_loop(), list[bool]()

        def slow() -> Any:
            for each in WEIGHTS:
                done = asyncio.run_coroutine_threadsafe(turns(5), loop)
                done.result(10)
                paused_during_read.append(not llm.ready.is_set())
                yield each

        await session.load(4, slow(), recompute=False)
        assert paused_during_read == [False] * 3
        await running

    asyncio.run(body())


def test_a_cancelled_sample_aborts_all_of_its_rollouts() -> None:
    async def body() -> None:
        llm, session = await started()
        task = asyncio.ensure_future(session.sample([1], [parameters(1000)] * 3))
        await turns(5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert llm.aborted == ["0", "1", "2"]
        assert llm.running == 0

    asyncio.run(body())


def test_a_stop_string_gives_the_text_before_it() -> None:
    async def body() -> None:
        llm, session = await started()
        llm.ends_with = ("stop", "END", "the text")
        (rollout,) = await session.sample([1], [parameters(2)])
        assert (rollout.finish, rollout.text) == (Finish.STOP, "the text")
        llm.ends_with = ("stop", 2, "")
        (rollout,) = await session.sample([1], [parameters(2)])
        assert (rollout.finish, rollout.text) == (Finish.STOP, None)

    asyncio.run(body())


def test_a_rollout_that_vllm_gave_up_is_an_error() -> None:
    async def body() -> None:
        llm, session = await started()
        llm.ends_with = ("error", None, "")
        with pytest.raises(ValueError, match="vLLM ended a rollout: error"):
            await session.sample([1], [parameters(2)])

    asyncio.run(body())


class EngineDeadError(Exception):
    """vLLM's exception of this name."""


def test_a_dead_process_of_vllm_is_a_lost_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    async def dead(*_: object, **__: object) -> None:
        raise EngineDeadError

    async def body() -> None:
        llm, session = await started()
        monkeypatch.setattr(llm, "pause_generation", dead)
        with pytest.raises(WorkerLostError, match="a process of vLLM died"):
            await session.load(4, WEIGHTS, recompute=False)

    asyncio.run(body())


def test_an_engine_with_incomplete_weights_stays_paused() -> None:
    async def body() -> None:
        llm, session = await started()
        llm.fails = True
        with pytest.raises(ValueError, match="lack 1 parameters"):
            await session.load(4, WEIGHTS, recompute=False)
        assert llm.calls[-1] == ("pause", "keep", False)
        assert session.version == 3

    asyncio.run(body())


def test_closing_ends_the_processes() -> None:
    llm = FakeLLM()
    VllmSession(llm, dict).close()
    assert llm.calls == ["shutdown"]
