"""The input of scorers, and the interfaces that scorers implement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from orchestrator.training.records import Finish, Prompt, RolloutBlock
from orchestrator.training.rewards.answers import AnswerFormat, find_answer


@dataclass(frozen=True, slots=True)
class Completion:
    """One rollout: a prompt and the response of the model.

    `prompt.reference` is the task's reference answer, `prompt.columns` the other columns of its row;
    `prompt.solution` is always empty. `length` counts the tokens of the response, at most `max_new_tokens`.
    `prefill` is the beginning of the response that the prompt already contained, such as `<think>` in some
    chat templates; `text` does not repeat it.
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
        """The prefill followed by the text. A prompt that ends in `<think>` counts as having a prefill."""
        opened = not self.prefill and self.prompt.text.rstrip().endswith("<think>")
        return ("<think>" if opened else self.prefill) + self.text

    @property
    def answer(self) -> str | None:
        """The answer in the response according to `reward.answer_formats`; None if there is none."""
        return find_answer(self.whole_text, self.answer_formats)


class Scorer(Protocol):
    """Scores one rollout. Any function with this signature is a scorer. `async def` functions are awaited,
    for up to `reward.concurrency` rollouts at once.
    """

    def __call__(self, completion: Completion, /) -> float:
        """Return a finite number, which the rubric weights. If it raises, the
        rollout is recorded as `crashed`.
        """
        ...


class BatchedScorer(Protocol):
    """Scores several rollouts with one call. Marked by `@batched`."""

    batched: bool

    def __call__(self, completions: Sequence[Completion], /) -> Sequence[float]:
        """Return one finite number for each rollout. At most
        `reward.concurrency` rollouts are passed at once.
        """
        ...


@runtime_checkable
class PreparedScorer(Protocol):
    """A scorer that loads large resources in advance. Loading does not count
    towards the timeout of a rollout.
    """

    def prepare(self, references: Sequence[Mapping[str, Any]], /) -> None:
        """Load what is needed to score rollouts with these references. It is called before each block, so it
        must be cheap if there is nothing new to load.
        """
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
    """Yield the N rollouts of a block in row order."""
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
