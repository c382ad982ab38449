"""The findings of an audit."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal[
    "group_lost",
    "trained_twice",
    "too_stale",
    "not_requested",
    "requested_twice",
    "not_sampled",
    "version",
    "step_missing",
    "step_repeated",
    "batch_size",
    "history_missing",
    "checkpoint",
    "rollouts",
    "metrics",
    "tokens",
]
"""docs/how-to/audit-a-run.md explains each of them."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A record that contradicts the guarantees of a run. `message` is a sentence for the user."""

    kind: Kind
    message: str
    step: int | None = None
    groups: tuple[int, ...] = ()
    run: str = ""
    """The run id; of a pipeline that of the stage."""

    def to_json(self) -> dict[str, Any]:
        """`{kind, run, step, groups, message}`."""
        return {
            "kind": self.kind,
            "run": self.run,
            "step": self.step,
            "groups": list(self.groups),
            "message": self.message,
        }


@dataclass(frozen=True, slots=True)
class Sampled:
    """A complete group: its response tokens, and the oldest version among them."""

    tokens: int = 0
    oldest: int = 0


@dataclass(slots=True)
class Sums:
    """Groups and tokens of one category."""

    groups: int = 0
    tokens: int = 0

    def add(self, sampled: Sampled | None = None) -> None:
        self.groups += 1
        self.tokens += sampled.tokens if sampled else 0


@dataclass(frozen=True, slots=True)
class Account:
    """The outcomes of all sampled groups, or of their response tokens. A group that was sampled again
    counts each time.
    """

    trained: int = 0
    """Trained on in a step that the final model includes."""
    stale: int = 0
    """Complete, and dropped because training on it would have exceeded the staleness bound. The buffer of
    this version never requests such groups.
    """
    surplus: int = 0
    """Complete, and not needed: without a signal (dynamic sampling), in excess (over-sampling), or a
    duplicate of another group.
    """
    aborted: int = 0
    """Abandoned: lost with a worker or node, cancelled by over-sampling, in flight when the run stopped, or
    newer than the checkpoint that the run continued from.
    """
    evaluation: int = 0
    """Answers to held-out prompts."""

    @property
    def sampled(self) -> int:
        """The sum of all categories."""
        return self.trained + self.stale + self.surplus + self.aborted + self.evaluation

    def __add__(self, other: Account) -> Account:
        mine, others = dataclasses.astuple(self), dataclasses.astuple(other)
        return Account(*(a + b for a, b in zip(mine, others, strict=True)))

    def to_json(self) -> dict[str, int]:
        """`{sampled, trained, stale, surplus, aborted, evaluation}`."""
        return {"sampled": self.sampled, **dataclasses.asdict(self)}


@dataclass(frozen=True, slots=True)
class Audit:
    """The findings about a run, or about all stages of a pipeline."""

    steps: int
    """Steps that the final model includes."""
    violations: tuple[Violation, ...]
    groups: Account
    tokens: Account
    under_way: int
    """Groups of a live run whose outcome is still open. No category counts them yet."""

    def __add__(self, other: Audit) -> Audit:
        return Audit(
            self.steps + other.steps,
            self.violations + other.violations,
            self.groups + other.groups,
            self.tokens + other.tokens,
            self.under_way + other.under_way,
        )

    def to_json(self) -> dict[str, Any]:
        """What `orchestrator audit --json` prints."""
        return {
            "violations": [violation.to_json() for violation in self.violations],
            "groups": self.groups.to_json(),
            "tokens": self.tokens.to_json(),
        }


def ranges(numbers: Iterable[int]) -> str:
    """Format integers for a message, with consecutive ones as ranges.

    >>> ranges([5, 1, 2, 3])
    '1-3, 5'
    """
    shown: list[str] = []
    for _, run in itertools.groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        shown.append(str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}")
    return ", ".join(shown)
