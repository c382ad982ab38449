"""Computes how the time of a step was spent, from the spans that its stages
report and the waits of the loop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Mapping, Sequence, Set
from typing import Literal

from orchestrator.clock import Clock
from orchestrator.training.stages import Span
from orchestrator.training.usage import Activity, Role

Wait = Literal["batch", "room"]
"""What the loop waits for: the trainer for its batch, the producer for room in the buffer."""

STAGE_ACTIVITY: dict[str, Activity] = {
    "generate": Activity.GENERATE,
    "score": Activity.SCORE,
    "learn": Activity.UPDATE,
    "sync": Activity.SYNC,
    "evaluate": Activity.EVALUATE,
    "checkpoint": Activity.CHECKPOINT,
}


def covered_ns(spans: Iterable[Span], start_ns: int, end_ns: int) -> int:
    """Nanoseconds between `start_ns` and `end_ns` that are covered by at least one span.

    >>> a, b = Span(Activity.GENERATE, 0, 5), Span(Activity.SCORE, 3, 8)
    >>> covered_ns([a, b], 0, 10)
    8
    """
    total, reached = 0, start_ns
    for span in sorted(spans, key=lambda span: span.start_ns):
        begin, end = max(span.start_ns, reached), min(span.end_ns, end_ns)
        if end > begin:
            total += end - begin
            reached = end
    return total


def step_timing(spans: Sequence[Span], start_ns: int, end_ns: int) -> dict[str, float]:
    """Compute the `time/*` metrics in seconds: the step, the union of each stage's spans inside it, and the
    time that no span covers (`time/orchestration`), also as a share of the step.
    """
    wall = end_ns - start_ns
    metrics = {"time/step": wall / 1e9}
    for stage, activity in STAGE_ACTIVITY.items():
        covered = covered_ns((span for span in spans if span.activity is activity), start_ns, end_ns)
        metrics[f"time/{stage}"] = covered / 1e9
    uncovered = wall - covered_ns(spans, start_ns, end_ns)
    metrics["time/orchestration"] = uncovered / 1e9
    metrics["time/orchestration_fraction"] = uncovered / wall if wall else 0.0
    return metrics


def utilisation(
    spans: Sequence[Span], actors: Mapping[Role, Set[str]], start_ns: int, end_ns: int
) -> dict[str, float]:
    """Compute `utilisation/<role>`: the share of time in which the `actors` of a role were busy, averaged
    over the actors.

    >>> spans = [Span(Activity.SCORE, 0, 5, Role.REWARD, "reward-0")]
    >>> utilisation(spans, {Role.REWARD: frozenset({"reward-0", "reward-1"})}, 0, 10)
    {'utilisation/reward': 0.25}
    """
    wall = end_ns - start_ns
    if not wall:
        return {}
    by_actor: dict[str, list[Span]] = {}
    for span in spans:
        by_actor.setdefault(span.actor, []).append(span)
    shares: dict[str, float] = {}
    for role, names in sorted(actors.items()):
        busy = sum(covered_ns(by_actor.get(name, ()), start_ns, end_ns) for name in names)
        shares[f"utilisation/{role.value}"] = busy / (wall * len(names))
    return shares


class StepTimes:
    """Collects the times of a step, from one report to the next."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start_ns = clock.now_ns()
        self._spans: list[Span] = []
        self._actors: dict[Role, set[str]] = {}
        self._waited: dict[Wait, int] = {"batch": 0, "room": 0}
        self._waiting: dict[Wait, int] = {}

    def begin(self) -> None:
        """Start the clock of the first step."""
        self._start_ns = self._clock.now_ns()

    def add(self, spans: Iterable[Span]) -> None:
        """Record spans reported by actors."""
        for span in spans:
            self._spans.append(span)
            if span.role is not None:
                self._actors.setdefault(span.role, set()).add(span.actor)

    def forget(self) -> None:
        """Drop the spans so far, because their steps are repeated."""
        self._spans = []

    @contextlib.contextmanager
    def waiting(self, what: Wait) -> Generator[None]:
        """Measure the body of the `with` statement as a wait of the loop."""
        self._waiting[what] = self._clock.now_ns()
        try:
            yield
        finally:
            self._waited[what] += self._clock.now_ns() - self._waiting.pop(what)

    def take(self) -> dict[str, float]:
        """Return the metrics `time/*` and `utilisation/*` of the step that ends now, and begin the next one.

        A wait that is still going on is split between the two.
        """
        start, end = self._start_ns, self._clock.now_ns()
        metrics = step_timing(self._spans, start, end) | utilisation(self._spans, self._actors, start, end)
        for what, waited in self._waited.items():
            under_way = end - self._waiting.get(what, end)
            metrics[f"time/wait_{what}"] = (waited + under_way) / 1e9
        self._waited = dict.fromkeys(self._waited, 0)
        self._waiting = dict.fromkeys(self._waiting, end)
        self._spans = [span for span in self._spans if span.end_ns > end]
        self._start_ns = end
        return metrics
