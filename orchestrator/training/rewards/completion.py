"""What a scorer is given, and what a scorer is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from orchestrator.training.records import Finish, Prompt, RolloutBlock
from orchestrator.training.rewards.answers import AnswerFormat, find_answer


@dataclass(frozen=True, slots=True)
class Completion:
    """One rollout: a prompt and the model's response.

    `prompt.reference` is what the task knows of the right answer, `prompt.columns` the other columns of its
    row; `prompt.solution` is always empty. `length` counts the response's tokens, at most `max_new_tokens`.
    `prefill` is the beginning of the answer that the prompt already contained, such as `<think>` in some chat
    templates; the model has not repeated it in `text`.
    """

    prompt: Prompt
    text: str
    length: int
    finish: Finish
    max_new_tokens: int
    prefill: str = ""
    answer_formats: tuple[AnswerFormat, ...] = ("tags",)

    @property
    def whole_text(self) -> str:
        """The prefill and the text. A prompt that ends in `<think>` has a prefill in any case."""
        opened = not self.prefill and self.prompt.text.rstrip().endswith("<think>")
        return ("<think>" if opened else self.prefill) + self.text

    @property
    def answer(self) -> str | None:
        """The answer in the response, as `reward.answer_formats` finds it; None if it has none."""
        return find_answer(self.whole_text, self.answer_formats)


class Scorer(Protocol):
    """Scores one rollout. Any function of this shape is a scorer, and so is an `async def` function, which is
    awaited, `reward.concurrency` rollouts at a time."""

    def __call__(self, completion: Completion, /) -> float:
        """A finite number, to be weighted. May raise: the rollout is then recorded as `crashed`."""
        ...


class BatchedScorer(Protocol):
    """Scores several rollouts with one call, one number for each. Marked by `@batched`."""

    batched: bool

    def __call__(self, completions: Sequence[Completion], /) -> Sequence[float]:
        """As many finite numbers as there are rollouts: at most `reward.concurrency`."""
        ...


@runtime_checkable
class PreparedScorer(Protocol):
    """A scorer that loads something big first. Loading does not count against a rollout's timeout."""

    def prepare(self, references: Sequence[Mapping[str, Any]], /) -> None:
        """Load what is needed to score rollouts with these references. Called before each block of rollouts,
        so it must be cheap when there is nothing new to load."""
        ...


AnyScorer = Callable[[Any], Any]
"""A plain, asynchronous or batched scorer."""
S = TypeVar("S", bound=AnyScorer)


def batched(scorer: S) -> S:
    """Declare that a function takes a list of completions and returns a list of numbers.

    @batched
    def reward_model(completions: Sequence[Completion]) -> list[float]: ...
    """
    scorer.batched = True  # type: ignore[attr-defined]  # any function has a __dict__
    return scorer


def completions_of(
    block: RolloutBlock, max_new_tokens: int, answer_formats: Sequence[AnswerFormat]
) -> Iterator[Completion]:
    """The N rollouts of a block, row for row."""
    for row, (text, length, finish) in enumerate(
        zip(block.texts, block.lengths.tolist(), block.finish.tolist(), strict=True)
    ):
        yield Completion(
            block.prompts[row // block.group_size],
            text,
            length,
            Finish(finish),
            max_new_tokens,
            block.prefill(row),
            tuple(answer_formats),
        )
