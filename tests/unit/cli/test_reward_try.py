"""`orchestrator reward try`: the reward of some answers, without Ray."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.cli.app import run_command_line

pytestmark = pytest.mark.slow  # each starts a process for the scorers

REFERENCE = ("--reference", '{"answer": "42"}')
RIGHT = "<think>6*7</think><answer>42.0</answer>"


def tried(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert run_command_line(["reward", "try", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_rewards_and_components_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    right, wrong, none = tried(
        capsys, *REFERENCE, "--answer", RIGHT, "--answer", "<answer>41</answer>", "--answer", "42"
    )
    assert right == {
        "answer": RIGHT,
        "found": "42.0",
        "reward": 1.1,
        "components": {"accuracy": 1.0, "format": 1.0},
        "grade": "ok",
        "reason": "",
        "traceback": "",
    }
    assert (wrong["reward"], wrong["found"]) == (0.0, "41")
    assert (none["reward"], none["found"]) == (0.0, None)


def test_overrides_and_plain_references_are_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ("reward=accuracy", "reward.answer_formats=[boxed,phrase]")
    boxed, phrase = tried(
        capsys, *overrides, "--reference", "42", "--answer", r"\boxed{42}", "--answer", "The answer is 41."
    )
    assert (boxed["reward"], phrase["reward"]) == (1.0, 0.0)
    assert phrase["found"] == "41"


def test_a_custom_scorer_sees_the_row_and_can_be_debugged(capsys: pytest.CaptureFixture[str]) -> None:
    key = r"+reward.components={tests.fakes.scorers\:needs_tests: 1.0}"
    (good,) = tried(capsys, key, "--row", '{"tests": ["a", "b"]}', *REFERENCE, "--answer", RIGHT)
    assert good["components"] == {"accuracy": 1.0, "format": 1.0, "needs_tests": 2.0}
    (bad,) = tried(capsys, key, *REFERENCE, "--answer", RIGHT)
    assert (bad["grade"], bad["components"]) == ("crashed", {})
    assert bad["reason"] == "needs_tests: KeyError: 'tests'"
    assert "in needs_tests" in bad["traceback"]


def test_the_default_output_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    key = r"+reward.components={tests.fakes.scorers\:needs_tests: 1.0}"
    assert run_command_line(["reward", "try", key, *REFERENCE, "--answer", RIGHT]) == 0
    out = capsys.readouterr().out
    assert "crashed" in out and "Traceback (most recent call last):" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (REFERENCE, "--answer: got nothing"),
        (("--reference", "Paris", "--answer", "x"), "--reference: got Paris, allowed: JSON"),
        ((*REFERENCE, "--row", "[1]", "--answer", "x"), "--row: got [1], allowed: a JSON object"),
        (
            (r"+reward.components={nosuch\:f: 1.0}", *REFERENCE, "--answer", "x"),
            "No module named 'nosuch'",
        ),
    ],
)
def test_refusals(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["reward", "try", *arguments]) == 2
    assert message in capsys.readouterr().err
