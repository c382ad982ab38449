"""Rule-based checkers: is an answer right? One file for each kind of reference.

| reference | checker |
| --- | --- |
| `{"checker": name, ...}` | the one of that name |
| `{"dataset": "countdown", "entry": ...}` | `countdown` |
| `{"dataset": ..., "entry": ...}`, from another reasoning_gym generator | `reasoning_gym` |
| `{"answer": ...}`, from a file | `mathematics` |

A checker is a function `(answer, reference) -> bool`. It may also say when two answers mean the same
(`equivalent`), which is how a majority vote counts them. A third party registers one under the entry point
group `orchestrator.checker`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from orchestrator.errors import ConfigError
from orchestrator.training.registry import NoFacts, Registry
from orchestrator.training.rewards.checkers._quantities import plain, quantity


class Checker(Protocol):
    """Checks one answer against its reference."""

    def __call__(self, answer: str, reference: Mapping[str, Any], /) -> bool:
        """Whether the answer is fully right. An answer that is merely nonsense is wrong, not an error."""
        ...


@runtime_checkable
class EquivalenceChecker(Checker, Protocol):
    """A checker that knows when two answers to one question mean the same."""

    def equivalent(self, one: str, other: str, reference: Mapping[str, Any], /) -> bool:
        """Whether the answers are the same answer, right or wrong. Does not look at the right one."""
        ...


CHECKERS: Registry[Checker, NoFacts] = Registry("checker", "orchestrator.training.rewards.checkers", NoFacts)


def checker_of(reference: Mapping[str, Any]) -> Checker:
    """The checker for this reference; imports what it needs.

    Raises ValueError if the reference is of no known kind, ConfigError if it names a checker that is not
    registered or not callable.
    """
    name = _name_of(reference)
    checker = CHECKERS.get(name)
    if not callable(checker):
        raise ConfigError("checker", name, "a function of an answer and its reference")
    return checker


def _name_of(reference: Mapping[str, Any]) -> str:
    if "checker" in reference:
        return str(reference["checker"])
    if "dataset" in reference:
        return "countdown" if reference["dataset"] == "countdown" else "reasoning_gym"
    if "answer" in reference:
        return "mathematics"
    raise ValueError(
        f"no checker for a reference with {sorted(reference)}: it needs `dataset` and `entry`, `answer`, or "
        "`checker`"
    )


def votes(answers: Sequence[str], reference: Mapping[str, Any]) -> list[str]:
    """The answers to one question, with each replaced by the first one that means the same.

    So equal strings are votes for one answer. Answers without text stay empty. A checker without `equivalent`
    counts texts and numbers as equal that differ only in spelling.

        votes(["12", "7", " 12.0", "", "7"], {"answer": "8"})  ->  ["12", "7", "12", "", "7"]
    """
    checker = checker_of(reference)
    candidates: list[str] = []
    chosen: list[str] = []
    for answer in answers:
        text = " ".join(answer.split())
        same = (
            each
            for each in candidates
            if each == text
            or _same_spelling(each, text)
            or (isinstance(checker, EquivalenceChecker) and checker.equivalent(each, text, reference))
        )
        found = next(same, None) if text else ""
        if found is None:
            candidates.append(text)
            found = text
        chosen.append(found)
    return chosen


def _same_spelling(one: str, other: str) -> bool:
    if plain(one).casefold() == plain(other).casefold():
        return True
    number = quantity(one)
    return number is not None and number == quantity(other)
