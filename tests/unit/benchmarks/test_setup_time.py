"""The pure functions of benchmarks/setup_time.py: recognising builds, steps and slow setups."""

from __future__ import annotations

import pytest

from benchmarks.setup_time import BUILD, FIRST_STEP, Row, failures


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("   Building antlr4-python3-runtime==4.9.3", "antlr4-python3-runtime"),
        ("   Building rl-orchestrator @ file:///repo", "rl-orchestrator"),
        ("  Building wheel for pycosat (setup.py): started", "pycosat"),
        ("  Building editable for rl-orchestrator (pyproject.toml): started", "rl-orchestrator"),
    ],
)
def test_build_lines_are_recognised(line: str, name: str) -> None:
    match = BUILD.match(line)
    assert match is not None
    assert match["name"] == name


@pytest.mark.parametrize("line", ["      Built zss==1.2.0", " + build==1.0", "Downloading ray (75.6MiB)"])
def test_other_lines_are_ignored(line: str) -> None:
    assert BUILD.match(line) is None


def test_the_time_of_the_first_learner_step_is_found() -> None:
    assert FIRST_STEP.search("20261130-114826-grpo-3160  step 1/2  held-out accuracy 0.00")
    assert not FIRST_STEP.search("20261130-114826-grpo-3160  step 0/2  held-out accuracy 0.00")


def test_slow_setups_and_source_builds_are_failures() -> None:
    rows = [Row("demo", 142, 1661.0, 0, 419.0), Row("first-step", 142, 1661.0, 0, 181.0)]
    assert failures(rows) == ["first-step: 181 s"]
    assert failures([Row("test-install", 204, 2344.0, 2, 35.0)]) == ["test-install: 2 built"]
