from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from orchestrator.errors import ConfigError
from orchestrator.training.records import ScoreStatus
from orchestrator.training.rewards.rubric import Rubric, spelled_answer
from orchestrator.training.rewards.scorers import SCORERS, load_scorer
from orchestrator.training.rewards.scoring import Outcome
from tests.fakes.graded import completion, reward_config, rollout_block

OK = Outcome(ScoreStatus.OK, (1.0, 0.5))


def test_the_reward_is_the_weighted_sum() -> None:
    rubric = Rubric(reward_config({"accuracy": 1.0, "format": 0.2}), max_new_tokens=10)
    scores = rubric.scores(rollout_block(["ab", "c"]), [OK, Outcome(ScoreStatus.OK, (0.0, 1.0))], ["", ""])
    assert scores.rewards.tolist() == [1.1, 0.2]
    assert scores.components["accuracy"].tolist() == [1.0, 0.0]
    assert scores.components["format"].tolist() == [0.5, 1.0]
    assert scores.grades.tolist() == [ScoreStatus.OK, ScoreStatus.OK]
    assert scores.reasons == ("", "")


def test_a_failure_gets_the_failure_reward_and_no_components() -> None:
    rubric = Rubric(reward_config({"accuracy": 1.0, "format": 0.2}), max_new_tokens=10)
    failed = Outcome(ScoreStatus.TIMEOUT, reason="no score within 5 s")
    scores = rubric.scores(rollout_block(["ab", "c"]), [OK, failed], ["", ""])
    assert scores.rewards.tolist() == [1.1, -0.5]
    assert scores.grades.tolist() == [ScoreStatus.OK, ScoreStatus.TIMEOUT]
    assert scores.reasons == ("", "no score within 5 s")
    assert math.isnan(scores.components["accuracy"][1])


def test_overlong_rollouts_are_punished_as_a_component() -> None:
    rubric = Rubric(reward_config({"accuracy": 1.0}, overlong_buffer=4), max_new_tokens=10)
    outcomes = [Outcome(ScoreStatus.OK, (1.0,))] * 3 + [Outcome(ScoreStatus.CRASHED, reason="no")]
    scores = rubric.scores(rollout_block(["x" * 6, "x" * 9, "x" * 10, "x" * 10]), outcomes, [""] * 4)
    assert scores.components["overlong"].tolist()[:3] == [0.0, -0.75, -1.0]
    assert math.isnan(scores.components["overlong"][3])
    assert scores.rewards.tolist() == [1.0, 0.25, 0.0, -0.5]


def test_answers_are_normalised_in_case_and_white_space() -> None:
    assert spelled_answer(completion("<answer>3</answer> no, <answer> The  SUN\n</answer>")) == "the sun"
    assert spelled_answer(completion("the sun")) == ""


def test_tracebacks_are_only_kept_for_failures() -> None:
    rubric = Rubric(reward_config({"accuracy": 1.0}), max_new_tokens=10)
    failed = Outcome(ScoreStatus.CRASHED, reason="no", traceback="where")
    good = Outcome(ScoreStatus.OK, (1.0,))
    assert rubric.scores(rollout_block(["a", "b"]), [good, failed], ["", ""]).tracebacks == ("", "where")
    assert rubric.scores(rollout_block(["a", "b"]), [good, good], ["", ""]).tracebacks == ()


def test_the_punishment_counts_from_where_the_context_ends() -> None:
    rubric = Rubric(reward_config({"accuracy": 1.0}, overlong_buffer=4), max_new_tokens=10)
    block = replace(rollout_block(["x" * 6, "x" * 6]), limits=np.array([6, 10], dtype=np.int32))
    scores = rubric.scores(block, [Outcome(ScoreStatus.OK, (1.0,))] * 2, ["", ""])
    assert scores.components["overlong"].tolist() == [-1.0, 0.0]


def test_reflection_is_marked_by_the_pattern() -> None:
    rubric = Rubric(reward_config({"accuracy": 1.0}), max_new_tokens=10)
    outcomes = [Outcome(ScoreStatus.OK, (1.0,))] * 2
    scores = rubric.scores(rollout_block(["so wait, 3", "await"]), outcomes, ["", ""])
    assert scores.reflected.tolist() == [True, False]


def test_an_empty_block() -> None:
    scores = Rubric(reward_config({"accuracy": 1.0}), 10).scores(rollout_block([]), [], [])
    assert scores.rewards.shape == (0,)
    assert scores.components["accuracy"].shape == (0,)


def test_scorers_by_name_and_by_path() -> None:
    assert load_scorer("format") is SCORERS.get("format")
    assert load_scorer("tests.fakes.scorers:length")(completion("four")) == 4.0
    assert Rubric(reward_config({"tests.fakes.scorers:length": 1.0}), 10).scorers == {
        "length": "tests.fakes.scorers:length"
    }


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("brevity", "reward.components: got brevity, allowed: accuracy, format"),
        ("no.such.module:f", "No module named 'no'"),
        ("tests.fakes.scorers:nothing", "no attribute 'nothing'"),
        ("tests.fakes.scorers:not_a_function", "a function of one Completion"),
    ],
)
def test_a_scorer_that_cannot_be_loaded(key: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_scorer(key)
    assert why in str(caught.value)


@pytest.mark.parametrize("taken", ["other.module:accuracy", "my.module:overlong"])
def test_component_names_must_differ(taken: str) -> None:
    with pytest.raises(ConfigError, match="is taken"):
        Rubric(reward_config({"accuracy": 1.0, taken: 1.0}), 10)


def test_an_invalid_regular_expression_is_rejected() -> None:
    with pytest.raises(ValidationError, match="a regular expression"):
        reward_config({"accuracy": 1.0}, reflection_pattern="(")


def test_a_rubric_needs_a_component() -> None:
    with pytest.raises(ValidationError, match="components"):
        reward_config({})


def test_rewards_are_float64() -> None:
    scores = Rubric(reward_config({"accuracy": 1.0}), 10).scores(
        rollout_block(["a"]), [Outcome(ScoreStatus.OK, (1.0,))], ["b"]
    )
    assert scores.rewards.dtype == np.float64
    assert scores.grades.dtype == np.uint8
