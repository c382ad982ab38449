"""The contract of the `Engine` port, for the built-in engines, the fake, and the example
of docs/how-to/add-an-engine.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from my_engines.uncached_engine import UncachedSampler

from orchestrator.errors import PromptTooLongError
from orchestrator.training.models.build import build_model, build_tokenizer
from orchestrator.training.records import Finish, Prompt, RolloutBlock, SamplingParams
from orchestrator.training.rollouts.engine import Engine, NamedTensor
from orchestrator.training.rollouts.engines import ENGINES, SamplingOption
from orchestrator.training.rollouts.engines.hf.sampler import HFSampler
from orchestrator.training.rollouts.engines.worked_solutions.engine import WorkedSolutionsEngine
from orchestrator.training.rollouts.scripted import ScriptedEngine
from orchestrator.training.rollouts.stepped import StepEngine
from tests.support.engines import generate, load
from tests.support.small_model import small_model

CONTEXT = 48
GROUP = 3
PROMPTS = (
    Prompt("sums/train/0", "1+2=", {}, "<think>1+2=3</think><answer>3</answer>"),
    Prompt("sums/train/1", "what is 12 - 7?", {}, "<answer>5</answer>"),
    Prompt("sums/train/2", "5-5=", {}, "<answer>0</answer>"),
)


@dataclass(frozen=True)
class Case:
    engine: Engine
    weights: Sequence[NamedTensor]
    """Other weights than the initial ones."""


SMALL = small_model(CONTEXT, initializer_range=0.3)
TOKENIZER = build_tokenizer(SMALL)
TAG_SEED = 5
"""A seed with which a rollout contains the tag `</think>`."""


def hf() -> Case:
    sampler = HFSampler(
        build_model(SMALL, seed=0),
        build_tokenizer(SMALL),
        CONTEXT,
        max_batch_rows=4,
        device=torch.device("cpu"),
        record_routes=False,
    )
    return Case(StepEngine(sampler), list(build_model(SMALL, seed=1).state_dict().items()))


def uncached() -> Case:
    sampler = UncachedSampler(
        build_model(SMALL, seed=0),
        build_tokenizer(SMALL),
        CONTEXT,
        device=torch.device("cpu"),
    )
    return Case(StepEngine(sampler), list(build_model(SMALL, seed=1).state_dict().items()))


def worked_solutions() -> Case:
    return Case(WorkedSolutionsEngine(build_tokenizer(SMALL), CONTEXT), [])


def scripted() -> Case:
    return Case(ScriptedEngine(CONTEXT, {"1+2=": ["3", "wait, 3", "4"]}), [])


SAMPLERS = pytest.mark.parametrize(
    "factory",
    [hf, pytest.param(uncached, marks=pytest.mark.slow), scripted],
    ids=lambda factory: factory.__name__,
)
"""The engines that sample instead of replaying given text."""


@pytest.fixture(
    params=[hf, pytest.param(uncached, marks=pytest.mark.slow), worked_solutions, scripted],
    ids=lambda factory: factory.__name__,
)
def case(request: pytest.FixtureRequest) -> Case:
    factory: Callable[[], Case] = request.param
    return factory()


def with_option(option: SamplingOption) -> pytest.MarkDecorator:
    """The engines whose facts name this sampling parameter."""
    supported = {"hf": ENGINES.facts("hf").sampling, "uncached": frozenset({"top_k", "min_p"})}
    engines = {"hf": hf, "uncached": pytest.param(uncached, marks=pytest.mark.slow)}
    chosen = [engines[name] for name, options in supported.items() if option in options]
    return pytest.mark.parametrize("factory", chosen, ids=lambda factory: factory.__name__)


def ask(
    case: Case, seed: int = 7, temperature: float = 1.0, max_new_tokens: int = 32, **options: Any
) -> RolloutBlock:
    sampling = SamplingParams(
        temperature=temperature, top_p=1.0, max_new_tokens=max_new_tokens, seed=seed, **options
    )
    return generate(case.engine, [40, 41, 42], PROMPTS, GROUP, sampling)


def test_a_block_has_every_group_in_columns_of_the_documented_types(case: Case):
    block = ask(case)
    rollouts, tokens = len(PROMPTS) * GROUP, len(block.tokens)
    assert block.prompts == PROMPTS
    assert block.group_ids.tolist() == [40, 41, 42] and block.group_ids.dtype == np.int64
    assert block.group_size == GROUP and len(block) == rollouts == len(block.texts)
    assert block.offsets[0] == 0 and block.offsets[-1] == tokens and block.offsets.dtype == np.int64
    assert block.prompt_offsets[0] == 0 and block.prompt_offsets[-1] == len(block.prompt_tokens)
    assert len(block.prompt_offsets) == len(PROMPTS) + 1 and (np.diff(block.prompt_offsets) > 0).all()
    assert (block.lengths >= 1).all()
    columns = {name: getattr(block, name) for name in ("tokens", "logprobs", "versions", "trainable")}
    assert {name: str(column.dtype) for name, column in columns.items()} == {
        "tokens": "int32",
        "logprobs": "float32",
        "versions": "int32",
        "trainable": "bool",
    }
    assert {len(column) for column in columns.values()} == {tokens}
    assert block.finish.dtype == np.uint8 and len(block.finish) == rollouts


def test_every_token_has_a_log_prob_and_is_trainable(case: Case):
    block = ask(case)
    assert np.isfinite(block.logprobs).all() and (block.logprobs <= 0).all()
    assert block.trainable.all()


def test_the_same_request_gives_the_same_rollouts_in_another_engine(
    case: Case, request: pytest.FixtureRequest
):
    factory: Callable[[], Case] = request.node.callspec.params["case"]
    first, second = ask(case), ask(factory())
    np.testing.assert_array_equal(first.tokens, second.tokens)
    np.testing.assert_array_equal(first.offsets, second.offsets)
    np.testing.assert_array_equal(first.logprobs, second.logprobs)
    assert first.texts == second.texts


def test_rollouts_do_not_depend_on_how_requests_are_split(case: Case):
    """The number of workers must not change what is sampled."""
    whole = ask(case)
    sampling = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=32, seed=7)
    for place, (group_id, prompt) in enumerate(zip((40, 41, 42), PROMPTS, strict=True)):
        alone = generate(case.engine, [group_id], [prompt], GROUP, sampling)
        assert alone.texts == whole.texts[place * GROUP : (place + 1) * GROUP]


@SAMPLERS
def test_a_higher_limit_only_lengthens_rollouts(factory: Callable[[], Case]):
    short, long = ask(factory(), max_new_tokens=2), ask(factory(), max_new_tokens=32)
    for index in range(len(short)):
        tokens = short.tokens[short.offsets[index] : short.offsets[index + 1]]
        start = long.offsets[index]
        np.testing.assert_array_equal(tokens, long.tokens[start : start + len(tokens)])


def test_loaded_weights_mark_the_tokens_that_follow(case: Case):
    assert set(ask(case).versions.tolist()) == {0}
    load(case.engine, 5, case.weights)
    assert set(ask(case).versions.tolist()) == {5}


def test_greedy_rollouts_of_a_group_are_equal_for_any_seed(case: Case):
    block, again = ask(case, seed=1, temperature=0.0), ask(case, seed=2, temperature=0.0)
    assert block.texts == again.texts
    for group in range(len(PROMPTS)):
        assert len(set(block.texts[group * GROUP : (group + 1) * GROUP])) == 1


def test_a_stopped_rollout_ends_with_its_only_end_token(case: Case):
    block = ask(case, seed=3)
    ends = {int(block.tokens[block.offsets[i + 1] - 1]) for i in np.flatnonzero(block.finish == Finish.STOP)}
    assert len(ends) == 1
    (end,) = ends
    assert (block.tokens == end).sum() == (block.finish == Finish.STOP).sum()


def test_no_rollout_exceeds_the_context(case: Case):
    block = ask(case, max_new_tokens=CONTEXT)
    prompt_lengths = np.repeat(np.diff(block.prompt_offsets), GROUP)
    assert (block.lengths + prompt_lengths <= CONTEXT).all()


def test_a_prompt_that_fills_the_context_is_rejected_by_name(case: Case):
    long = Prompt("sums/train/9", "1" * CONTEXT, {}, "<answer>1</answer>")
    with pytest.raises(PromptTooLongError, match=f"sums/train/9: got a prompt of {CONTEXT} tokens"):
        generate(case.engine, [1], [long], GROUP, SamplingParams(1.0, 1.0, 8, 0))


@SAMPLERS
def test_a_sampler_obeys_max_new_tokens_and_reports_truncation(factory: Callable[[], Case]):
    block = ask(factory(), max_new_tokens=1)
    assert block.lengths.tolist() == [1] * len(block)
    assert Finish.LENGTH in block.finish.tolist()


@SAMPLERS
def test_a_sampler_explores(factory: Callable[[], Case]):
    block = ask(factory())
    assert len(set(block.texts)) > 1
    assert block.texts != ask(factory(), seed=8).texts


@SAMPLERS
def test_other_weights_give_other_log_probs(factory: Callable[[], Case]):
    case = factory()
    before = ask(case, temperature=0.0)
    load(case.engine, 1, case.weights)
    assert before.logprobs[0] != ask(case, temperature=0.0).logprobs[0]


def test_the_example_engine_samples_like_the_fast_engine():
    slow, fast = ask(uncached(), max_new_tokens=8), ask(hf(), max_new_tokens=8)
    np.testing.assert_array_equal(slow.tokens, fast.tokens)
    np.testing.assert_allclose(slow.logprobs, fast.logprobs, atol=1e-5)


def responses(block: RolloutBlock) -> list[list[int]]:
    return [block.tokens[slice(*block.offsets[i : i + 2])].tolist() for i in range(len(block))]


@with_option("top_k")
def test_the_most_probable_token_alone_is_the_greedy_one(factory: Callable[[], Case]):
    case = factory()
    greedy, one = ask(case, temperature=0.0), ask(case, top_k=1)
    assert responses(one) == responses(greedy)
    np.testing.assert_allclose(one.logprobs, greedy.logprobs, atol=1e-5)
    assert responses(ask(case, top_k=len(TOKENIZER))) == responses(ask(case))


@with_option("min_p")
def test_min_p_1_leaves_only_the_most_probable_token(factory: Callable[[], Case]):
    case = factory()
    assert responses(ask(case, min_p=1.0)) == responses(ask(case, temperature=0.0))
    assert responses(ask(case, min_p=1e-9)) == responses(ask(case))


@with_option("repetition_penalty")
def test_a_repetition_penalty_makes_repeated_tokens_rarer(factory: Callable[[], Case]):
    def repeated(penalty: float) -> int:
        block = ask(case, repetition_penalty=penalty)
        return sum(len(tokens) - len(set(tokens)) for tokens in responses(block))

    case = factory()
    assert repeated(10.0) < repeated(1.0) < repeated(0.3)


@with_option("stop")
def test_a_stop_string_ends_a_rollout_with_the_token_that_completes_it(factory: Callable[[], Case]):
    """It is two characters, which are two tokens or lie within one."""
    case = factory()
    whole = ask(case)
    index = int(np.argmax(whole.lengths))
    stop = whole.texts[index][5:7]
    block = ask(case, stop=(stop,))
    assert np.isfinite(block.logprobs).all() and len(block.logprobs) == len(block.tokens)
    for rollout, tokens in enumerate(responses(whole)):
        first = len(responses(block)[rollout])
        assert responses(block)[rollout] == tokens[:first]
        text = whole.texts[rollout]
        if stop in text:
            assert block.texts[rollout] == text[: text.index(stop)]
            assert block.finish[rollout] == Finish.STOP
            until, before = TOKENIZER.batch_decode([tokens[:first], tokens[: first - 1]])
            assert stop in until and stop not in before
        else:
            assert block.texts[rollout] == text and first == len(tokens)
            assert block.finish[rollout] == whole.finish[rollout]
    assert 1 < len(block.texts[index]) < len(whole.texts[index])


@with_option("stop")
def test_a_stop_string_may_span_tokens_and_end_within_one(factory: Callable[[], Case]):
    case = factory()
    whole = ask(case, seed=TAG_SEED, max_new_tokens=40)
    tag = TOKENIZER.convert_tokens_to_ids("</think>")
    index, place = next(
        (index, tokens.index(tag))
        for index, tokens in enumerate(responses(whole))
        if tag in tokens[2:] and tag not in tokens[:2]
    )
    before = TOKENIZER.decode(responses(whole)[index][:place])
    block = ask(case, seed=TAG_SEED, max_new_tokens=40, stop=(before[-1] + "</th",))
    assert responses(block)[index] == responses(whole)[index][: place + 1]
    assert block.texts[index] == before[:-1]


@with_option("stop_token_ids")
def test_a_stop_token_ends_a_rollout_and_is_not_shown(factory: Callable[[], Case]):
    case = factory()
    whole = ask(case)
    longest = max(responses(whole), key=len)
    end = longest[3]
    block = ask(case, stop_token_ids=(end,))
    for rollout, tokens in enumerate(responses(whole)):
        if end in tokens:
            kept = tokens[: tokens.index(end) + 1]
            assert responses(block)[rollout] == kept and block.finish[rollout] == Finish.STOP
            assert whole.texts[rollout].startswith(block.texts[rollout])
            assert str(TOKENIZER.decode(end)) not in block.texts[rollout]
        else:
            assert responses(block)[rollout] == tokens


@with_option("min_new_tokens")
def test_no_rollout_ends_before_min_new_tokens(factory: Callable[[], Case]):
    case = factory()
    free = ask(case, seed=3)
    shortest = int(free.lengths.min())
    end = int(free.tokens[free.offsets[int(np.argmin(free.lengths)) + 1] - 1])
    assert shortest < 32
    block = ask(case, seed=3, min_new_tokens=shortest)
    assert not any(end in tokens[:shortest] for tokens in responses(block))
    assert any(end in tokens for tokens in responses(block))
    assert (block.lengths > free.lengths.min()).all() and np.isfinite(block.logprobs).all()


@with_option("thinking_token_budget")
def test_a_thinking_budget_forces_the_closing_tag_which_is_not_trainable(factory: Callable[[], Case]):
    """The prompt opens the tag, so every response thinks from its first token."""
    case, budget = factory(), 4
    closing = TOKENIZER.convert_tokens_to_ids("</think>")
    prompt = Prompt("sums/train/7", "1+2=<think>", {})

    def sampled(limit: int | None) -> RolloutBlock:
        sampling = SamplingParams(1.0, 1.0, 32, TAG_SEED, thinking_token_budget=limit)
        return generate(case.engine, [40], [prompt], 4, sampling)

    free, block = sampled(None), sampled(budget)
    assert free.trainable.all()
    assert len(block.tokens) == len(block.logprobs) == len(block.trainable)
    cut = 0
    for index, (without, tokens) in enumerate(zip(responses(free), responses(block), strict=True)):
        trainable = block.trainable[slice(*block.offsets[index : index + 2])].tolist()
        thought = without[:budget]
        assert tokens[: len(thought)] == thought
        if closing in thought or len(without) <= budget:
            assert tokens == without and all(trainable)
            continue
        cut += 1
        assert tokens[budget] == closing
        assert trainable[: budget + 2] == [True] * budget + [False] + [True] * (len(tokens) > budget + 1)
        assert "</think>" in block.texts[index]
    assert cut


ALL_OPTIONS: dict[SamplingOption, Any] = {
    "top_k": 40,
    "min_p": 0.01,
    "repetition_penalty": 1.2,
    "stop": ("1", "((", "a"),
    "stop_token_ids": (30,),
    "min_new_tokens": 4,
    "thinking_token_budget": 6,
}


@with_option("repetition_penalty")
def test_rollouts_do_not_depend_on_how_requests_are_split_whatever_the_sampling(
    factory: Callable[[], Case],
):
    case = factory()
    whole = ask(case, **ALL_OPTIONS)
    sampling = SamplingParams(1.0, 1.0, 32, 7, **ALL_OPTIONS)
    for place, (group_id, prompt) in enumerate(zip((40, 41, 42), PROMPTS, strict=True)):
        alone = generate(factory().engine, [group_id], [prompt], GROUP, sampling)
        group = slice(place * GROUP, (place + 1) * GROUP)
        assert alone.texts == whole.texts[group] and responses(alone) == responses(whole)[group]
