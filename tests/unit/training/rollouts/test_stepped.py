"""Samplers as engines: groups join and leave a running batch, and weights change between two tokens."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from orchestrator.errors import PromptTooLongError
from orchestrator.training.models.build import build_model
from orchestrator.training.models.characters import character_tokenizer
from orchestrator.training.records import Prompt, SamplingParams
from orchestrator.training.rollouts.engine import Response, SampledGroup, SampleRequest
from orchestrator.training.rollouts.engines.hf.sampler import HFSampler
from orchestrator.training.rollouts.stepped import StepEngine
from orchestrator.training.tensors.buckets import flatten
from tests.support.engines import generate
from tests.support.small_model import small_model

CONTEXT = 96
TOKENIZER = character_tokenizer(CONTEXT)
TEXTS = ("7", "1+2=", "what is 3 - 3, please?", "12,7,5 -> 24:")
PROMPTS = tuple(Prompt(f"t/{index}", text, {}) for index, text in enumerate(TEXTS))
SAMPLING = SamplingParams(temperature=0.8, top_p=1.0, max_new_tokens=40, seed=11)


def model(seed: int = 0) -> PreTrainedModel:
    return build_model(small_model(CONTEXT, initializer_range=0.2), seed)


def engine(rows: int = 8, *, record_routes: bool = False) -> StepEngine:
    sampler = HFSampler(model(), TOKENIZER, CONTEXT, rows, torch.device("cpu"), record_routes)
    return StepEngine(sampler)


def request(index: int, size: int = 3, sampling: SamplingParams = SAMPLING) -> SampleRequest:
    return SampleRequest(index, PROMPTS[index], size, sampling)


def tokens(responses: Sequence[Response]) -> list[list[int]]:
    return [response.tokens.tolist() for response in responses]


async def steps(count: int) -> None:
    """Let the engine sample about `count` tokens of every rollout."""
    for _ in range(count):
        await asyncio.sleep(0)


async def new_weights(to: StepEngine, version: int, *, recompute: bool) -> None:
    weights = flatten(model(seed=1).state_dict().items(), 1 << 16)
    await to.update_weights(version, weights, recompute=recompute)


@torch.no_grad()
def logprobs_of(model: PreTrainedModel, prompt: Sequence[int], response: Response) -> np.ndarray:
    """The log-probs of all tokens of the response, from one forward pass."""
    ids = torch.tensor([[*prompt, *response.tokens.tolist()]])
    logits = model(ids).logits[0, len(prompt) - 1 : -1].float() / SAMPLING.temperature
    chosen = torch.from_numpy(response.tokens).long()[:, None]
    return torch.log_softmax(logits, -1).gather(1, chosen)[:, 0].numpy()


@pytest.mark.slow
def test_groups_that_join_later_are_sampled_as_if_alone() -> None:
    async def main() -> list[SampledGroup]:
        shared = engine()
        calls: list[asyncio.Task[SampledGroup]] = []
        for index in range(len(PROMPTS)):
            calls.append(asyncio.ensure_future(shared.sample(request(index))))
            await steps(5)
        groups = await asyncio.gather(*calls)
        assert shared.sampler.running == 0
        return groups

    for index, group in enumerate(asyncio.run(main())):
        alone = asyncio.run(engine().sample(request(index)))
        assert tokens(group.responses) == tokens(alone.responses)
        assert [each.text for each in group.responses] == [each.text for each in alone.responses]


def test_short_groups_do_not_wait_for_long_ones() -> None:
    async def main() -> None:
        shared, order = engine(), list[str]()

        async def sample(name: str, index: int, sampling: SamplingParams) -> None:
            await shared.sample(request(index, sampling=sampling))
            order.append(name)

        short = SamplingParams(0.8, 1.0, 2, 0)
        await asyncio.gather(sample("long", 0, SAMPLING), sample("short", 1, short))
        assert order == ["short", "long"]

    asyncio.run(main())


def test_groups_that_will_take_longest_are_started_first() -> None:
    """One group fits into the batch at a time."""

    async def main() -> None:
        shared, order = engine(rows=3), list[int]()

        async def sample(index: int, expected: int) -> None:
            await shared.sample(dataclasses.replace(request(index), expected_tokens=expected))
            order.append(index)

        await asyncio.gather(sample(0, 0), sample(1, 40), sample(2, 900))
        assert order == [2, 1, 0]

    asyncio.run(main())


@pytest.mark.slow
def test_rollouts_with_different_parameters_share_the_batch() -> None:
    """As training and evaluation do, also with penalties and stop strings."""
    settings = [
        SAMPLING,
        SamplingParams(0.0, 1.0, 30, 0),
        SamplingParams(1.0, 0.9, 20, 3, repetition_penalty=1.2, stop=("1", "a"), min_new_tokens=3),
        SamplingParams(1.0, 1.0, 20, 3, top_k=10, stop_token_ids=(40,), thinking_token_budget=2),
    ]

    async def main() -> list[SampledGroup]:
        shared = engine(rows=12)
        return await asyncio.gather(
            *(shared.sample(request(index, sampling=each)) for index, each in enumerate(settings))
        )

    for index, group in enumerate(asyncio.run(main())):
        alone = asyncio.run(engine().sample(request(index, sampling=settings[index])))
        assert tokens(group.responses) == tokens(alone.responses)
        assert [each.text for each in group.responses] == [each.text for each in alone.responses]
        for together, single in zip(group.responses, alone.responses, strict=True):
            np.testing.assert_allclose(together.logprobs, single.logprobs, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("waiting", [False, True])
def test_a_cancelled_group_leaves_the_batch_and_the_others_as_they_are(waiting: bool) -> None:
    async def main() -> None:
        shared = engine(rows=3 if waiting else 8)
        calls = [asyncio.ensure_future(shared.sample(request(index))) for index in range(2)]
        await steps(6)
        cancelled = 0 if not waiting else 1
        calls[cancelled].cancel()
        with pytest.raises(asyncio.CancelledError):
            await calls[cancelled]
        assert shared.sampler.running == 3
        group = await calls[1 - cancelled]
        alone = await engine().sample(request(1 - cancelled))
        assert tokens(group.responses) == tokens(alone.responses)
        again = await shared.sample(request(cancelled))
        assert tokens(again.responses) == tokens((await engine().sample(request(cancelled))).responses)
        assert shared.sampler.running == 0

    asyncio.run(main())


def test_rejected_prompts_do_not_disturb_running_groups() -> None:
    async def main() -> None:
        shared = engine()
        running = asyncio.ensure_future(shared.sample(request(0)))
        await steps(3)
        long = SampleRequest(9, Prompt("t/9", "1" * CONTEXT, {}), 3, SAMPLING)
        with pytest.raises(PromptTooLongError, match="t/9"):
            await shared.sample(long)
        assert len((await running).responses) == 3

    asyncio.run(main())


def test_an_error_of_a_step_reaches_everyone_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        shared = engine()
        calls = [asyncio.ensure_future(shared.sample(request(index))) for index in range(2)]
        await steps(3)

        def broken() -> None:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(shared.sampler, "step", broken)
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(result, RuntimeError)

    asyncio.run(main())


@pytest.mark.parametrize("recompute", [False, True])
def test_running_rollouts_continue_with_new_weights(recompute: bool) -> None:
    """Every token carries the version it was sampled with. With a recomputed cache its log-prob is that of a
    plain forward pass of its version; with the old cache it is so only before the change.
    """

    async def main() -> SampledGroup:
        shared = engine()
        call = asyncio.ensure_future(shared.sample(request(2)))
        await steps(12)
        await new_weights(shared, 5, recompute=recompute)
        return await call

    group = asyncio.run(main())
    expected = {version: model(seed) for version, seed in ((0, 0), (5, 1))}
    switched = 0
    for response in group.responses:
        assert (np.diff(response.versions) >= 0).all() and response.versions[0] == 0
        for version, plain in expected.items():
            mine = response.versions == version
            gap = np.abs(response.logprobs - logprobs_of(plain, group.prompt_tokens, response))[mine]
            if version == 0 or recompute:
                assert gap.max(initial=0.0) < 1e-4
            elif mine.any():
                switched += 1
                assert gap.max() > 1e-3
    assert recompute or switched


def test_new_weights_do_not_change_what_was_sampled_before() -> None:
    async def main() -> SampledGroup:
        shared = engine()
        call = asyncio.ensure_future(shared.sample(request(2)))
        await steps(12)
        await new_weights(shared, 5, recompute=True)
        return await call

    changed, alone = asyncio.run(main()), asyncio.run(engine().sample(request(2)))
    for response, whole in zip(changed.responses, alone.responses, strict=True):
        before = int((response.versions == 0).sum())
        assert before >= 5
        assert response.tokens[:before].tolist() == whole.tokens[:before].tolist()


def test_recomputing_in_parts_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> list[SampledGroup]:
        shared = engine(rows=16)
        calls = [asyncio.ensure_future(shared.sample(request(index))) for index in range(4)]
        await steps(12)
        await new_weights(shared, 5, recompute=True)
        return await asyncio.gather(*calls)

    whole = asyncio.run(main())
    monkeypatch.setattr("orchestrator.training.rollouts.engines.hf.sampler._RECOMPUTED_TOKENS", 64)
    for group, again in zip(whole, asyncio.run(main()), strict=True):
        assert tokens(group.responses) == tokens(again.responses)
        for one, other in zip(group.responses, again.responses, strict=True):
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


def test_recorded_routes_are_those_with_which_tokens_were_sampled() -> None:
    async def main() -> SampledGroup:
        shared = engine(record_routes=True)
        call = asyncio.ensure_future(shared.sample(request(2)))
        await steps(12)
        await new_weights(shared, 5, recompute=True)
        return await call

    changed = asyncio.run(main())
    alone = asyncio.run(engine(record_routes=True).sample(request(2)))
    for response, whole in zip(changed.responses, alone.responses, strict=True):
        before = int((response.versions == 0).sum()) - 1  # the newest token is read with the new weights
        assert response.routes is not None and whole.routes is not None
        assert np.array_equal(response.routes[:before], whole.routes[:before])


@pytest.mark.slow
def test_an_engine_works_through_any_number_of_groups_with_few_rows() -> None:
    """Rows of the tables are reused, and the cache moves its columns again and again."""
    sampling = SamplingParams(1.0, 1.0, 24, 5, stop=("7",), repetition_penalty=1.1)
    prompts = [PROMPTS[index % 4] for index in range(24)]
    together = generate(engine(rows=5), range(24), prompts, 2, sampling)
    for index in (0, 7, 13, 23):
        alone = generate(engine(), [index], [prompts[index]], 2, sampling)
        assert together.texts[2 * index : 2 * index + 2] == alone.texts
