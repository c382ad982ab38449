from __future__ import annotations

import pytest

from orchestrator.training.rewards.scorers.format import format_reward
from tests.fakes.graded import completion

GOOD = "<think>3+6-2=7</think><answer>+3+6-2</answer>"


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (GOOD, 1.0),
        ("  <think>a</think>\n\n<answer>b</answer>\n", 1.0),
        ("<think></think><answer></answer>", 1.0),
        ("", 0.0),
        ("<answer>b</answer>", 0.0),
        ("<think>a</think>", 0.0),
        ("<think>a</think><answer>b", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a<answer>b</answer></think>", 0.0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.0),
        ("<think>a</think><think>a</think><answer>b</answer>", 0.0),
        ("so <think>a</think><answer>b</answer>", 0.0),
        ("<think>a</think> so <answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer> so", 0.0),
        ("a</think><answer>b</answer>", 0.0),
    ],
)
def test_one_think_then_one_answer(text: str, reward: float) -> None:
    assert format_reward(completion(text)) == reward


def test_a_prompt_may_open_the_first_tag() -> None:
    assert format_reward(completion("a</think><answer>b</answer>", prompt="1+1?\n<think>\n")) == 1.0
    assert format_reward(completion(GOOD, prompt="1+1?\n<think>")) == 0.0


def test_a_chat_template_may_open_the_first_tag() -> None:
    assert format_reward(completion("a</think><answer>b</answer>", prefill="<think>\n")) == 1.0
    assert format_reward(completion(GOOD, prefill="<think>\n")) == 0.0
    assert format_reward(completion("<answer>b</answer>", prefill="<think>\n\n</think>\n\n")) == 1.0
