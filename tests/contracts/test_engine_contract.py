"""The contract of the `Engine` port, for the built-in engines, the fake, and the example
of docs/how-to/add-an-engine.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from my_engines.uncached_engine import UncachedEngine

from orchestrator.errors import PromptTooLongError
from orchestrator.training.models.build import build_model, build_tokenizer
from orchestrator.training.records import Finish, Prompt, RolloutBlock, SamplingParams
from orchestrator.training.rollouts.engine import Engine, GenerateRequest, NamedTensor
from orchestrator.training.rollouts.engines.hf.engine import HFEngine
from orchestrator.training.rollouts.engines.worked_solutions.engine import WorkedSolutionsEngine
from orchestrator.training.rollouts.scripted import ScriptedEngine
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


def hf() -> Case:
    engine = HFEngine(
        build_model(SMALL, seed=0),
        build_tokenizer(SMALL),
        CONTEXT,
        max_batch_rows=4,
        device=torch.device("cpu"),
        record_routes=False,
    )
    return Case(engine, list(build_model(SMALL, seed=1).state_dict().items()))


def uncached() -> Case:
    engine = UncachedEngine(
        build_model(SMALL, seed=0),
        build_tokenizer(SMALL),
        CONTEXT,
        max_batch_rows=2,
        device=torch.device("cpu"),
    )
    return Case(engine, list(build_model(SMALL, seed=1).state_dict().items()))


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


def ask(case: Case, seed: int = 7, temperature: float = 1.0, max_new_tokens: int = 32) -> RolloutBlock:
    sampling = SamplingParams(temperature=temperature, top_p=1.0, max_new_tokens=max_new_tokens, seed=seed)
    return case.engine.generate(GenerateRequest([40, 41, 42], PROMPTS, GROUP, sampling))


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
        alone = case.engine.generate(GenerateRequest([group_id], [prompt], GROUP, sampling))
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
    case.engine.load_weights(5, iter(case.weights))
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
    request = GenerateRequest([1], [long], GROUP, SamplingParams(1.0, 1.0, 8, 0))
    with pytest.raises(PromptTooLongError, match=f"sums/train/9: got a prompt of {CONTEXT} tokens"):
        case.engine.generate(request)


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
    case.engine.load_weights(1, iter(case.weights))
    assert before.logprobs[0] != ask(case, temperature=0.0).logprobs[0]


def test_the_example_engine_samples_like_the_fast_engine():
    slow, fast = ask(uncached(), max_new_tokens=8), ask(hf(), max_new_tokens=8)
    np.testing.assert_array_equal(slow.tokens, fast.tokens)
    np.testing.assert_allclose(slow.logprobs, fast.logprobs, atol=1e-5)
