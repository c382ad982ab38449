"""Scorers are loaded before anything else of a run starts."""

from __future__ import annotations

import psutil
import pytest

from orchestrator.errors import ConfigError, WorkerLostError
from orchestrator.training.rewards.trial import check_scorers
from tests.fakes.graded import reward_config

pytestmark = pytest.mark.slow


def test_scorers_that_can_be_loaded_are_and_their_processes_end() -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    check_scorers(reward_config({"accuracy": 1.0, "tests.fakes.scorers:length": 1.0}))
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("nosuch:f", "ModuleNotFoundError: No module named 'nosuch'"),
        ("tests.fakes.scorers:nosuch", "nosuch"),
        ("tests.fakes.scorers:not_a_function", "it is a int"),
        ("tests.fakes.scorers:two_arguments", "missing a required argument: 'reference'"),
        ("tests.fakes.scorers:yields", "it is a generator"),
        ("tests.fakes.broken_import:scorer", "broken_import.py, line 3"),
    ],
)
def test_scorers_that_cannot_be_loaded_are_rejected(key: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_scorers(reward_config({key: 1.0}))
    assert caught.value.key == "reward.components"
    assert caught.value.value == key
    assert message in str(caught.value)


def test_a_module_that_ends_the_process_is_reported() -> None:
    with pytest.raises(WorkerLostError, match="exited with code 3 while it started"):
        check_scorers(reward_config({"tests.fakes.exiting_import:scorer": 1.0}))
