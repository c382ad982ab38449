"""The critical path of a step: the chain of work, each link waiting for the previous one, that determined how
long the step took.

It is walked backwards from the end of the step. What a span waited for is the latest-ending span among

    end of the step, update,      the trainer's own chain: learner spans and the scoring of evaluations
    publish, checkpoint
    first span of an update       also the scoring of rollouts, if it ended while the trainer waited for its
                                  batch (`time/wait_batch`)
    score                         the previous span of the same reward worker, and the block that it scores
                                  (same step and number of tokens; otherwise the latest of the same step)
    generate, evaluate, sync      the previous span of the same rollout worker, and the trainer's chain: a
    of a rollout worker           publish (or the evaluation after it) makes room for the next requests;
                                  with dynamic sampling also the scoring of rollouts: a discarded group does

Time between a span and what it waited for belongs to the controller: calls, recording, bookkeeping. The path
is cut at the start of the step. Its segments follow each other without a gap and add up to the step exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.runs.timeline.spans import (
    EVALUATE,
    GENERATE,
    LEARNER,
    REWARD,
    ROLLOUT,
    SCORE,
    UPDATE,
    ActorSpan,
)
from orchestrator.runs.timeline.steps import StepWindow

CONTROLLER, WAIT = "controller", "wait"
TOLERANCE_NS = 1_000_000
"""How much later than its successor's start a span may end, because each process reads its own clock."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the critical path. Where no actor worked, `role` and `actor` are `controller`, and
    `activity` is `wait`.
    """

    role: str
    activity: str
    actor: str
    start_ns: int
    end_ns: int
    evaluates: bool = False
    """Whether it belongs to an evaluation."""

    @property
    def ns(self) -> int:
        """Its length."""
        return self.end_ns - self.start_ns


def critical_path(
    window: StepWindow, spans: Iterable[ActorSpan], dynamic_sampling: bool = False
) -> tuple[Segment, ...]:
    """The critical path of a step, in order of time."""
    work = _StepWork(window, [span for span in spans if _overlaps(span, window)], dynamic_sampling)
    reached, current = window.end_ns, None
    path: list[Segment] = []
    while reached > window.start_ns:
        before = _latest(work.candidates(current), reached)
        if before is None:
            path.append(_controller(window.start_ns, reached))
            break
        end = min(before.end_ns, reached)
        if end < reached:
            path.append(_controller(end, reached))
        start = max(before.start_ns, window.start_ns)
        evaluates = before.activity == EVALUATE or work.scores_evaluation(before)
        if start < end:
            path.append(Segment(before.role, before.activity, before.actor, start, end, evaluates))
        reached, current = start, before
    return tuple(reversed(path))


class _StepWork:
    """The spans that overlap a step, by what can wait for them."""

    def __init__(self, window: StepWindow, spans: Sequence[ActorSpan], dynamic_sampling: bool) -> None:
        self._waited_ns, self._dynamic_sampling = window.waited_ns, dynamic_sampling
        self._blocks = [span for span in spans if span.role == ROLLOUT]
        self._scores = [span for span in spans if span.role == REWARD and span.activity == SCORE]
        self._scored = self._match()
        self._by_actor: dict[str, list[ActorSpan]] = {}
        for span in spans:
            self._by_actor.setdefault(span.actor, []).append(span)
        self._trainer = [span for span in spans if span.role == LEARNER]
        self._trainer += [score for score in self._scores if self.scores_evaluation(score)]

    def scores_evaluation(self, span: ActorSpan) -> bool:
        """Whether `span` scored answers to held-out prompts."""
        block = self._scored.get(span)
        return block is not None and block.activity == EVALUATE

    def candidates(self, span: ActorSpan | None) -> list[ActorSpan]:
        """The spans that `span` may have waited for; None is the end of the step."""
        if span is None:
            return self._trainer
        own = self._by_actor[span.actor]
        if span.role == LEARNER:
            return [*self._trainer, *self._batch_of(span)]
        if span.role == ROLLOUT:
            return [*own, *self._trainer, *(self._scores if self._dynamic_sampling else ())]
        block = self._scored.get(span)
        return own if block is None else [*own, block]

    def _batch_of(self, update: ActorSpan) -> list[ActorSpan]:
        """The scoring that a wait of the trainer for its batch may have ended with. An update has two spans
        per rank: only the first, which fetches the batch, can have waited for it.
        """
        fetched = any(
            span.activity == UPDATE and span.step == update.step and span.end_ns <= update.start_ns
            for span in self._by_actor[update.actor]
        )
        if update.activity != UPDATE or fetched or self._waited_ns == 0:
            return []
        scores = [score for score in self._scores if not self.scores_evaluation(score)]
        if self._waited_ns is None:
            return scores
        began_ns = update.start_ns - self._waited_ns - TOLERANCE_NS
        return [score for score in scores if score.end_ns >= began_ns]

    def _match(self) -> Mapping[ActorSpan, ActorSpan]:
        """The block that each score span scored, as far as it can be told."""
        found: dict[ActorSpan, ActorSpan] = {}
        for score in self._scores:
            same_step = [
                span
                for span in self._blocks
                if span.step == score.step and span.activity in (GENERATE, EVALUATE)
            ]
            same_size = [span for span in same_step if score.tokens and span.tokens == score.tokens]
            block = _latest(same_size, score.start_ns) or _latest(same_step, score.start_ns)
            if block is not None:
                found[score] = block
        return found


def _latest(spans: Iterable[ActorSpan], before_ns: int) -> ActorSpan | None:
    """The latest-ending span that started before `before_ns` and ended by then; the longest of those that
    ended together.
    """
    ended = [span for span in spans if span.start_ns < before_ns and span.end_ns <= before_ns + TOLERANCE_NS]
    return max(
        ended, key=lambda span: (min(span.end_ns, before_ns), -span.start_ns, span.actor), default=None
    )


def _overlaps(span: ActorSpan, window: StepWindow) -> bool:
    return span.start_ns < window.end_ns and span.end_ns > window.start_ns


def _controller(start_ns: int, end_ns: int) -> Segment:
    return Segment(CONTROLLER, WAIT, CONTROLLER, start_ns, end_ns)
