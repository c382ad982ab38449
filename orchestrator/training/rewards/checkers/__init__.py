"""Rule-based checkers decide whether an answer is correct. There is one file for each kind of reference.

| reference | checker |
| --- | --- |
| `{"checker": name, ...}` | the checker with that name |
| `{"dataset": "countdown", "entry": ...}` | `countdown` |
| `{"dataset": ..., "entry": ...}`, from another reasoning_gym generator | `reasoning_gym` |
| `{"answer": ...}`, from a file | `mathematics` |

A checker is a function `(answer, reference) -> bool`. It may also define when two answers mean
the same (`equivalent`), which majority votes use. Third parties register checkers under the entry
point group `orchestrator.checker`.
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
        """Return whether the answer is fully correct. An unparsable answer is wrong, not an error."""
        ...


@runtime_checkable
class EquivalenceChecker(Checker, Protocol):
    """A checker that can tell whether two answers to the same question mean the same."""

    def equivalent(self, one: str, other: str, reference: Mapping[str, Any], /) -> bool:
        """Return whether the two answers are the same, correct or not, without
        consulting the correct answer.
        """
        ...


CHECKERS: Registry[Checker, NoFacts] = Registry("checker", "orchestrator.training.rewards.checkers", NoFacts)


def checker_of(reference: Mapping[str, Any]) -> Checker:
    """Return the checker for a reference, and import its dependencies.

    Raises ValueError if the kind of the reference is unknown, and ConfigError if it names a checker that is
    not registered or not callable.
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
        f"no checker for a reference with {sorted(reference)}: expected `dataset` and `entry`, `answer`, or "
        "`checker`"
    )


def votes(answers: Sequence[str], reference: Mapping[str, Any]) -> list[str]:
    """Replace each answer to one question by the first answer that means the same.

    Equal strings are then votes for the same answer. Answers without text stay empty. Without `equivalent`,
    only answers that differ in the spelling of a text or a number count as the same.

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
