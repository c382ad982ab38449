"""Who judges an answer: one file for each kind of reference.

`{"dataset": ..., "entry": ...}` comes from a reasoning_gym generator, `{"answer": ...}` from a file. The
modules that take long to import are imported when the first reference of their kind is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Judge = Callable[[str, Mapping[str, Any]], bool]
"""(answer, reference) -> is it fully right? Never raises for an answer that is merely nonsense."""


def judge_of(reference: Mapping[str, Any]) -> Judge:
    """The judge for this kind of reference. Raises ValueError if it is of no known kind."""
    if reference.get("dataset") == "countdown":
        from orchestrator.training.rewards.checkers.countdown import judge_countdown

        return judge_countdown
    if "dataset" in reference:
        from orchestrator.training.rewards.checkers.generated import judge_generated

        return judge_generated
    if "answer" in reference:
        from orchestrator.training.rewards.checkers.mathematics import judge_mathematics

        return judge_mathematics
    raise ValueError(
        f"no judge for a reference with {sorted(reference)}, only for dataset and entry, or answer"
    )
