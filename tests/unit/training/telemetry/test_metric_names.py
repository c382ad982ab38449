"""docs/reference/metrics.md lists what the code measures: nothing missing, nothing invented."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
GROUPS = (
    "reward",
    "accuracy",
    "heldout",
    "eval",
    "rollout",
    "policy",
    "learner",
    "value",
    "offpolicy",
    "moe",
    "time",
    "mfu",
    "cost",
)
NAME = re.compile(rf"(?:{'|'.join(GROUPS)})/[a-z_0-9]*[a-z0-9]")


def documented() -> dict[str, str]:
    """Name and meaning, from the first cell of each row."""
    text = (ROOT / "docs/reference/metrics.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {row[0].strip("`"): row[2] for row in rows if len(row) == 4 and row[0].startswith("`")}


@functools.cache
def in_code() -> set[str]:
    """String literals of the package that are metric names as a whole."""
    names: set[str] = set()
    for path in (ROOT / "orchestrator").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value):
                names.add(node.value)
    return names


@pytest.mark.slow
def test_every_metric_of_the_code_is_documented() -> None:
    assert in_code() - documented().keys() == set()


@pytest.mark.slow
def test_every_documented_metric_is_in_the_code() -> None:
    assert documented().keys() - in_code() == {
        "reward/<component>",
        "time/wait_room",
        "utilisation/<role>",
        "eval/pass_at_<k>",
        "eval/maj_at_<k>",
        "moe/expert_load_max_over_mean/layer_<i>",
        "moe/router_entropy/layer_<i>",
    }


def test_every_metric_has_a_meaning() -> None:
    assert all(len(meaning) > 5 for meaning in documented().values())
