"""Measures the activities of an actor on its slot, for the ledger and for the timing of steps."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from orchestrator.clock import Clock
from orchestrator.training.stages import Span
from orchestrator.training.usage import Activity, Role, SpanRecorded, UsageSink, new_event_id


@dataclass(slots=True)
class Measure:
    """The tokens that were sampled or trained during a span. Set it while the span is open."""

    tokens: int = 0
    end_ns: int = 0
    """When the span ended; 0 while it is open."""


class UsageMeter:
    """Measures one actor on one slot. A span is also emitted if its body raises, because the time was used.
    An actor with several accelerators uses all their leases at once.
    """

    def __init__(self, sink: UsageSink, clock: Clock, leases: Sequence[str], actor: str, role: Role) -> None:
        self._sink, self._clock = sink, clock
        self._leases, self._actor, self._role = tuple(leases), actor, role
        self._taken: list[Span] = []
        self._closed_ns: int | None = None

    @contextlib.contextmanager
    def span(self, activity: Activity, step: int, since_ns: int | None = None) -> Generator[Measure]:
        """Measure the body of the `with` statement as `activity` for learner step `step`. The span begins
        earlier if the activity did, at `since_ns`.
        """
        measure, start_ns = Measure(), self._clock.now_ns() if since_ns is None else since_ns
        try:
            yield measure
        finally:
            measure.end_ns = self._clock.now_ns()
            end_ns = min(measure.end_ns, self._closed_ns or measure.end_ns)
            self._taken.append(Span(activity, start_ns, end_ns, self._role, self._actor))
            for lease_id in self._leases if start_ns < end_ns or self._closed_ns is None else ():
                self._sink.emit(
                    SpanRecorded(
                        event_id=new_event_id(),
                        lease_id=lease_id,
                        actor=self._actor,
                        role=self._role,
                        activity=activity,
                        start_ns=start_ns,
                        end_ns=end_ns,
                        step=step,
                        tokens=measure.tokens,
                    )
                )

    def close(self) -> None:
        """Measure nothing after now, because the leases end: open spans are cut off here."""
        self._closed_ns = self._clock.now_ns()

    def take(self) -> tuple[Span, ...]:
        """Return the spans that were closed since the last call. Actors return them with their results."""
        spans, self._taken = tuple(self._taken), []
        return spans
