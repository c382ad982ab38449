"""What a scorer sees of a rollout, and what a scorer is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from orchestrator.training.records import Finish, Prompt, RolloutBlock


@dataclass(frozen=True, slots=True)
class Completion:
    """One rollout. `length` counts its tokens, at most `max_new_tokens`; `prompt.solution` is always
    empty."""

    prompt: Prompt
    text: str
    length: int
    finish: Finish
    max_new_tokens: int


class Scorer(Protocol):
    """Scores one rollout. Any function of this shape is a scorer."""

    def __call__(self, completion: Completion, /) -> float:
        """Return a finite number, which the rubric weighs. An exception makes it `ScoreStatus.CRASHED`."""
        ...


@runtime_checkable
class PreparedScorer(Scorer, Protocol):
    """A scorer that loads something big first; loading does not count against a rollout's timeout."""

    def prepare(self, references: Sequence[Mapping[str, Any]], /) -> None:
        """Load what scoring these references takes. Called before each block, so it must be cheap when there
        is nothing new.
        """
        ...


def completions_of(block: RolloutBlock, max_new_tokens: int) -> Iterator[Completion]:
    """The N rollouts of a block, row for row."""
    for row, (text, length, finish) in enumerate(
        zip(block.texts, block.lengths.tolist(), block.finish.tolist(), strict=True)
    ):
        prompt = block.prompts[row // block.group_size]
        yield Completion(prompt, text, length, Finish(finish), max_new_tokens)
