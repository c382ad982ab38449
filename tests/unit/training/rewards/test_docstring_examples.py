"""The worked examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = (
    "orchestrator.training.prompts.template",
    "orchestrator.training.rewards.judges.countdown",
    "orchestrator.training.rewards.overlong",
    "orchestrator.training.rewards.scorers.accuracy",
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0
