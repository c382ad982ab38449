from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from orchestrator.training.records import ScoreStatus
from orchestrator.training.rewards.completion import Completion, batched
from orchestrator.training.rewards.scoring import Outcome, ScorerSet
from tests.fakes import scorers
from tests.fakes.graded import completion


def scored(scorer: Any, *texts: str, timeout_seconds: float = 60.0) -> list[Outcome]:
    return ScorerSet({"it": scorer}, timeout_seconds).score_now([completion(text) for text in texts])


@pytest.mark.parametrize(
    ("text", "value"), [("numpy", 0.5), ("bool", 1.0)], ids=["a numpy number", "a truth value"]
)
def test_numbers_of_other_types_are_numbers(text: str, value: float) -> None:
    assert scored(scorers.returns_the_wrong_thing, text) == [Outcome(ScoreStatus.OK, (value,))]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("nan", "nan"), ("inf", "-inf"), ("string", "'1.0'"), ("none", "None"), ("huge", "1000")],
)
def test_results_other_than_finite_numbers_are_invalid(text: str, shown: str) -> None:
    (outcome,) = scored(scorers.returns_the_wrong_thing, text)
    assert outcome.status is ScoreStatus.INVALID
    assert outcome.reason.startswith(f"it: not a finite number: {shown}")


@pytest.mark.parametrize("scorer", [scorers.raises, scorers.exits])
def test_a_scorer_that_raises_crashed(scorer: scorers.Function) -> None:
    (outcome,) = scored(scorer, "bad")
    assert outcome.status is ScoreStatus.CRASHED
    assert outcome.reason in ("it: RuntimeError: no such proof", "it: SystemExit: 3")


def test_the_traceback_begins_in_the_scorer() -> None:
    (outcome,) = scored(scorers.raises, "bad")
    first, *_, last = outcome.traceback.strip().splitlines()
    assert first == "Traceback (most recent call last):"
    assert last == "RuntimeError: no such proof"
    assert "tests/fakes/scorers.py" in outcome.traceback
    assert "rewards/scoring.py" not in outcome.traceback


def test_a_lone_surrogate_in_an_error_is_escaped() -> None:
    """Neither Parquet files nor terminals accept lone surrogates."""

    def raises(completion: Completion) -> float:
        raise ValueError("\ud800")

    (outcome,) = scored(raises, "a")
    assert outcome.reason == "it: ValueError: \\ud800"
    outcome.traceback.encode()


def test_an_error_whose_text_raises_is_handled() -> None:
    class EvilError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

        __repr__ = __str__

    def raises(completion: Completion) -> float:
        raise EvilError

    def returns(completion: Completion) -> Any:
        return EvilError()

    assert scored(raises, "a")[0].reason == "it: EvilError"
    assert scored(returns, "a")[0].reason == "it: not a finite number: a EvilError"


def test_scorers_after_the_first_failure_are_skipped() -> None:
    both = ScorerSet({"length": scorers.length, "it": scorers.raises}, 60.0)
    good, bad = both.score_now([completion("good"), completion("bad")])
    assert good == Outcome(ScoreStatus.OK, (4.0, 1.0))
    assert bad.components == ()


def test_asynchronous_scorers_run_together() -> None:
    everyone = asyncio.Event()
    arrived: list[str] = []

    async def waits_for_all(completion: Completion) -> float:
        arrived.append(completion.text)
        if len(arrived) == 3:
            everyone.set()
        await everyone.wait()
        return float(len(completion.text))

    both = ScorerSet({"length": scorers.length, "it": waits_for_all}, 60.0)
    outcomes = both.score_now([completion(text) for text in ("a", "bb", "ccc")])
    assert [outcome.components for outcome in outcomes] == [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]


def test_an_asynchronous_object_and_one_that_raises() -> None:
    class Judge:
        async def __call__(self, completion: Completion) -> float:
            await asyncio.sleep(0)
            if completion.text == "bad":
                raise KeyError("tests")
            return 0.5

    good, bad = scored(Judge(), "good", "bad")
    assert good == Outcome(ScoreStatus.OK, (0.5,))
    assert bad.reason == "it: KeyError: 'tests'"
    assert "in __call__" in bad.traceback


def test_an_asynchronous_scorer_that_hangs_is_cancelled() -> None:
    async def hangs(completion: Completion) -> float:
        await asyncio.sleep(60 if completion.text == "bad" else 0)
        return 1.0

    good, bad = scored(hangs, "good", "bad", timeout_seconds=0.2)
    assert good.status is ScoreStatus.OK
    assert bad == Outcome(ScoreStatus.TIMEOUT, reason="it: no score within 0.2 s")


def test_a_plain_scorer_that_returns_a_coroutine() -> None:
    async def judge(completion: Completion) -> float:
        return 1.0

    def plain(completion: Completion) -> Any:
        return judge(completion)

    (outcome,) = scored(plain, "a")
    assert outcome.status is ScoreStatus.INVALID
    assert "async def" in outcome.reason


def test_a_plain_scorer_may_run_an_event_loop() -> None:
    async def judge() -> float:
        await asyncio.sleep(0)
        return 0.25

    def plain(completion: Completion) -> float:
        return asyncio.run(judge())

    assert scored(plain, "a") == [Outcome(ScoreStatus.OK, (0.25,))]


def test_batched_scorers_get_all_rollouts_at_once() -> None:
    sizes: list[int] = []

    @batched
    def model(completions: Sequence[Completion]) -> list[float]:
        sizes.append(len(completions))
        return [len(each.text) for each in completions]

    outcomes = scored(model, "a", "bb", "ccc")
    assert [outcome.components for outcome in outcomes] == [(1.0,), (2.0,), (3.0,)]
    assert sizes == [3]


def test_a_batched_scorer_may_be_asynchronous() -> None:
    @batched
    async def model(completions: Sequence[Completion]) -> list[float]:
        await asyncio.sleep(0)
        return [1.0 for _ in completions]

    assert [outcome.status for outcome in scored(model, "a", "b")] == [ScoreStatus.OK] * 2


def test_one_bad_rollout_does_not_cost_its_batch() -> None:
    @batched
    def model(completions: Sequence[Completion]) -> list[float]:
        if any(each.text == "bad" for each in completions):
            raise ValueError("cannot read it")
        return [1.0 for _ in completions]

    outcomes = scored(model, "a", "bad", "c")
    assert [outcome.status for outcome in outcomes] == [ScoreStatus.OK, ScoreStatus.CRASHED, ScoreStatus.OK]
    assert outcomes[1].reason == "it: ValueError: cannot read it"


def test_a_batch_of_another_length_is_invalid() -> None:
    @batched
    def model(completions: Sequence[Completion]) -> list[float]:
        return [1.0]

    assert [outcome.reason for outcome in scored(model, "a", "b")] == [
        "it: returned 1 numbers for 2 completions"
    ] * 2


def test_a_scorer_sees_the_answer_the_prefill_and_the_columns() -> None:
    seen = completion("so</think> <answer> 4 </answer>", prefill="<think>\n")
    assert seen.answer == "4"
    assert seen.whole_text == "<think>\nso</think> <answer> 4 </answer>"
    assert seen.prompt.columns == {}
