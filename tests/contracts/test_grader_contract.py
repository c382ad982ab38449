"""The contract of graders, in this process or in a child process: the same scores, and failures as data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.errors import ConfigError
from orchestrator.training.records import ScoreStatus
from orchestrator.training.rewards.config import RewardConfig
from orchestrator.training.rewards.grader import Grader, InlineGrader, RolloutGrader
from tests.fakes.graded import reward_config, rollout_block

Make = Callable[[RewardConfig], RolloutGrader]
FAKES = "tests.fakes.scorers"


@pytest.fixture(
    params=[InlineGrader, pytest.param(Grader, marks=pytest.mark.slow)], ids=["inline", "process"]
)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    made: list[RolloutGrader] = []

    def make(config: RewardConfig) -> RolloutGrader:
        made.append(request.param(config, 100))
        return made[-1]

    yield make
    for grader in made:
        grader.close()


def test_scores_are_in_row_order(make: Make) -> None:
    grader = make(reward_config({"format": 2.0, f"{FAKES}:length": 1.0}))
    texts = ["<think>a</think><answer>b</answer>", "b", "ccc", "b"]
    scores = grader.grade(rollout_block(texts, group_size=2))
    assert scores.rewards.tolist() == [36.0, 1.0, 3.0, 1.0]
    assert scores.components["format"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert scores.components["length"].tolist() == [34.0, 1.0, 3.0, 1.0]
    assert scores.grades.tolist() == [ScoreStatus.OK] * 4


def test_references_reach_the_scorers(make: Make) -> None:
    grader = make(reward_config({"accuracy": 1.0}))
    block = rollout_block(["<answer>1/2</answer>", "<answer>2</answer>"], 2, {"answer": r"\frac{1}{2}"})
    assert grader.grade(block).rewards.tolist() == [1.0, 0.0]


def test_the_failure_of_one_rollout_does_not_affect_others(make: Make) -> None:
    grader = make(reward_config({f"{FAKES}:raises": 1.0}))
    scores = grader.grade(rollout_block(["a", "bad", "c"]))
    assert scores.rewards.tolist() == [1.0, -0.5, 1.0]
    assert scores.grades.tolist() == [ScoreStatus.OK, ScoreStatus.CRASHED, ScoreStatus.OK]
    assert scores.reasons == ("", "raises: RuntimeError: no such proof", "")


def test_results_other_than_finite_numbers_are_invalid(make: Make) -> None:
    grader = make(reward_config({f"{FAKES}:returns_the_wrong_thing": 1.0}))
    scores = grader.grade(rollout_block(["nan", "inf", "string", "none", "huge", "numpy", "bool"]))
    assert scores.grades.tolist() == [ScoreStatus.INVALID] * 5 + [ScoreStatus.OK] * 2
    assert scores.rewards.tolist() == [-0.5] * 5 + [0.5, 1.0]


def test_many_blocks_and_an_empty_one(make: Make) -> None:
    grader = make(reward_config({f"{FAKES}:length": 1.0}))
    for texts in (["a"], [], ["bb", "ccc"]):
        assert grader.grade(rollout_block(texts)).rewards.tolist() == [len(text) for text in texts]


def test_texts_may_contain_any_characters(make: Make) -> None:
    grader = make(reward_config({f"{FAKES}:length": 1.0}))
    assert grader.grade(rollout_block(["é", "\ud800", "😀\n\0"])).rewards.tolist() == [1.0, 1.0, 3.0]


def test_an_unknown_scorer_is_an_error(make: Make) -> None:
    with pytest.raises(ConfigError, match="allowed: accuracy, format"):
        make(reward_config({"brevity": 1.0})).grade(rollout_block(["a"]))


def test_equal_rollouts_get_equal_scores(make: Make) -> None:
    grader = make(reward_config({f"{FAKES}:length": 1.0}))
    rewards = grader.grade(rollout_block(["aa"] * 50 + ["b"] * 14, group_size=8)).rewards
    np.testing.assert_array_equal(rewards, [2.0] * 50 + [1.0] * 14)


def test_failed_rollouts_are_retried(make: Make, tmp_path: Path) -> None:
    grader = make(reward_config({f"{FAKES}:fails_once": 1.0}, retries=1))
    scores = grader.grade(rollout_block(["a"], reference={"flag": str(tmp_path / "flag")}))
    assert scores.grades.tolist() == [ScoreStatus.OK]


@pytest.mark.parametrize("concurrency", [1, 4, 100])
@pytest.mark.parametrize("scorer", ["length", "length_later", "lengths"])
def test_plain_asynchronous_and_batched_scorers_are_supported(
    make: Make, scorer: str, concurrency: int
) -> None:
    grader = make(reward_config({f"{FAKES}:{scorer}": 1.0}, concurrency=concurrency))
    texts = ["a" * count for count in range(1, 12)]
    assert grader.grade(rollout_block(texts)).rewards.tolist() == [*range(1, 12)]


@pytest.mark.parametrize("scorer", ["raises", "raises_later", "batch_raises"])
def test_a_failure_comes_with_its_traceback(make: Make, scorer: str) -> None:
    grader = make(reward_config({f"{FAKES}:{scorer}": 1.0}, concurrency=4))
    scores = grader.grade(rollout_block(["a", "bad", "c"]))
    assert scores.grades.tolist() == [ScoreStatus.OK, ScoreStatus.CRASHED, ScoreStatus.OK]
    assert scores.reasons[1] == f"{scorer}: RuntimeError: no such proof"
    assert f"in {scorer}\n" in scores.tracebacks[1]
    assert scores.tracebacks[0] == ""


def test_equivalent_answers_are_one_vote(make: Make) -> None:
    grader = make(reward_config({"accuracy": 1.0}))
    texts = [f"<answer>{answer}</answer>" for answer in ("12", "12.0", "24/2", "7", "7", " 7")]
    block = rollout_block([*texts, "none"], 7, {"answer": "12"})
    assert grader.grade(block).answers == ("12", "12.0", "24/2", "7", "7", "7", "")
    assert grader.grade(block, count_votes=True).answers == ("12", "12", "12", "7", "7", "7", "")


def test_scorers_see_prefills_columns_and_answers(make: Make) -> None:
    grader = make(reward_config({f"{FAKES}:sees_everything": 1.0}, answer_formats=["boxed"]))
    block = rollout_block([r"</think>\boxed{4}"])
    prompts = (replace(block.prompts[0], columns={"level": 5, "tests": ["x"]}),)
    scores = grader.grade(replace(block, prompts=prompts, prefills=("<think>",)))
    assert scores.reasons == ("",)
    assert scores.rewards.tolist() == [1.0]


def test_accuracy_is_reported_for_every_rollout(make: Make) -> None:
    """Also with weight 0, because dynamic sampling can filter by correctness instead of by the reward."""
    grader = make(reward_config({"accuracy": 0.0, "format": 1.0}))
    block = rollout_block(["<answer>4</answer>", "<answer>5</answer>"], 2, {"answer": 4})
    scores = grader.grade(block)
    assert scores.components["accuracy"].tolist() == [1.0, 0.0]
    assert scores.rewards.tolist() == [0.0, 0.0]
