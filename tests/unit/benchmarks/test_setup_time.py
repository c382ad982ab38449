"""The pure parts of benchmarks/setup_time.py: what counts as a build, as a step, and as too slow."""

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
def test_a_line_that_tells_of_a_build(line: str, name: str) -> None:
    match = BUILD.match(line)
    assert match is not None
    assert match["name"] == name


@pytest.mark.parametrize("line", ["      Built zss==1.2.0", " + build==1.0", "Downloading ray (75.6MiB)"])
def test_other_lines(line: str) -> None:
    assert BUILD.match(line) is None


def test_the_first_learning_step() -> None:
    assert FIRST_STEP.search("20261130-114826-grpo-3160  step 1/2  held-out accuracy 0.00")
    assert not FIRST_STEP.search("20261130-114826-grpo-3160  step 0/2  held-out accuracy 0.00")


def test_what_is_too_slow_or_built_is_a_failure() -> None:
    rows = [Row("demo", 142, 1661.0, 0, 419.0), Row("first-step", 142, 1661.0, 0, 181.0)]
    assert failures(rows) == ["first-step: 181 s"]
    assert failures([Row("test-install", 204, 2344.0, 2, 35.0)]) == ["test-install: 2 built"]
