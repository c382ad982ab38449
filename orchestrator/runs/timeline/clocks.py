"""Corrects the clocks of hosts that contradict each other.

Each span is measured by the clock of its host. Whatever the clocks say, some spans end before others:

1. A step's report is written before its successor's update starts, and after its own weights were published
   (where no other attempt did the same step).
2. Weights of version v are published before any rollout worker starts its first work for step v.
3. A block is generated before it is scored (matched by step and number of tokens, where that is unique).
4. In synchronous training (`max_staleness: 0`), all blocks of step v are scored before its update starts.

Where the recorded times violate such an order, the clock of one of the two hosts is shifted by just enough.
The host of the learner is the reference. Clocks that contradict nothing are left alone, so an error smaller
than the time between two such spans cannot be seen and stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from orchestrator.runs.timeline.spans import (
    EVALUATE,
    GENERATE,
    LEARNER,
    REWARD,
    ROLLOUT,
    SCORE,
    SYNC,
    UPDATE,
    ActorSpan,
)
from orchestrator.runs.timeline.steps import StepWindow

Timed = TypeVar("Timed", ActorSpan, StepWindow)

CONTROLLER = "controller"
SPANS_PER_UPDATE = 2
"""Of each rank: it fetches the batch, then trains on it."""
MOST_HOSTS = 64
"""With more hosts, clocks are not corrected: the effort grows with the third power."""


@dataclass(frozen=True, slots=True)
class Order:
    """Something on host `first` ended at `end_ns`, before something on host `then` started at `start_ns`."""

    first: str
    end_ns: int
    then: str
    start_ns: int


@dataclass(frozen=True, slots=True)
class AlignedTimes:
    """Spans and windows by the clock of the learner's host. `shifts_ns` are the corrections that were added,
    by host; those of 0 are left out.
    """

    spans: tuple[ActorSpan, ...]
    windows: tuple[StepWindow, ...]
    shifts_ns: Mapping[str, int]


def align(spans: Sequence[ActorSpan], windows: Sequence[StepWindow], synchronous: bool) -> AlignedTimes:
    """Shift the clocks of hosts that contradict others."""
    hosts = {span.node for span in spans}
    learner = next((span.node for span in spans if span.role == LEARNER), "")
    shifts = _shifts(list(_orders(spans, windows, synchronous)), hosts | {CONTROLLER}, learner)
    moved = [_moved(span, shifts.get(span.node, 0)) for span in spans]
    return AlignedTimes(
        tuple(sorted(moved, key=lambda span: (span.start_ns, span.actor))),
        tuple(_moved(window, shifts.get(CONTROLLER, 0)) for window in windows),
        {host: ns for host, ns in sorted(shifts.items()) if ns},
    )


def _moved(timed: Timed, by_ns: int) -> Timed:
    return replace(timed, start_ns=timed.start_ns + by_ns, end_ns=timed.end_ns + by_ns) if by_ns else timed


def _shifts(orders: Sequence[Order], hosts: set[str], reference: str) -> dict[str, int]:
    """Corrections that satisfy all orders. An order is a difference constraint: `then` is shifted by at least
    `least[first, then]` more than `first`. The reference stays, and hosts that need the least come first.
    """
    if len(hosts) > MOST_HOSTS:
        return {}
    least: dict[tuple[str, str], int] = {}
    for order in orders:
        if order.first != order.then:
            pair = (order.first, order.then)
            least[pair] = max(least.get(pair, order.end_ns - order.start_ns), order.end_ns - order.start_ns)
    for via in hosts:  # Floyd-Warshall: the orders that follow from two others
        for first in hosts:
            for then in hosts:
                if (first, via) in least and (via, then) in least and first != then:
                    total = least[first, via] + least[via, then]
                    least[first, then] = max(least.get((first, then), total), total)
    shifts = {reference: 0}
    while len(shifts) < len(hosts | {reference}):
        needed = {host: _needed(host, shifts, least) for host in hosts - shifts.keys()}
        host = min(needed, key=lambda host: (abs(needed[host]), host))
        shifts[host] = needed[host]
    return shifts


def _needed(host: str, shifts: Mapping[str, int], least: Mapping[tuple[str, str], int]) -> int:
    """The correction nearest to 0 that fits those that are settled."""
    lowest = [shifts[known] + least[known, host] for known in shifts if (known, host) in least]
    highest = [shifts[known] - least[host, known] for known in shifts if (host, known) in least]
    return max([min([0, *highest]), *lowest])


def _orders(spans: Sequence[ActorSpan], windows: Sequence[StepWindow], synchronous: bool) -> Iterator[Order]:
    repeated = _repeated(spans)
    once = [window for window in windows if window.step not in repeated and window.step - 1 not in repeated]
    for attempt in sorted({span.attempt for span in spans}):
        own = [span for span in spans if span.attempt == attempt]
        yield from _reports(own, once)
        yield from _publishes(own)
        yield from _scores(own)
        if synchronous:
            yield from _batches(own)


def _repeated(spans: Sequence[ActorSpan]) -> set[int]:
    """The steps whose update or publish more than one attempt did: a resumed run publishes the version of its
    checkpoint again, and repeats the steps after it.
    """
    attempts: dict[int, set[int]] = {}
    for span in spans:
        if span.role == LEARNER and span.activity in (UPDATE, SYNC):
            attempts.setdefault(span.step, set()).add(span.attempt)
    return {step for step, found in attempts.items() if len(found) > 1}


def _reports(spans: Sequence[ActorSpan], windows: Sequence[StepWindow]) -> Iterator[Order]:
    """The update of step v follows the report of step v, and precedes the publish and the report of v + 1."""
    updates = _by_step(span for span in spans if span.activity == UPDATE)
    publishes = _by_step(span for span in spans if span.role == LEARNER and span.activity == SYNC)
    ranks = len({span.actor for span in spans if span.role == LEARNER})
    for window in windows:
        for update in _once(updates, window.step, SPANS_PER_UPDATE * ranks):
            yield Order(CONTROLLER, window.end_ns, update.node, update.start_ns)
        if _once(updates, window.step - 1, SPANS_PER_UPDATE * ranks):
            for publish in _once(publishes, window.step, ranks):
                yield Order(publish.node, publish.end_ns, CONTROLLER, window.end_ns)


def _publishes(spans: Sequence[ActorSpan]) -> Iterator[Order]:
    publishes = _by_step(span for span in spans if span.role == LEARNER and span.activity == SYNC)
    ranks = len({span.actor for span in spans if span.role == LEARNER})
    first_work: dict[tuple[str, int], ActorSpan] = {}
    for span in spans:
        if span.role == ROLLOUT and span.activity in (SYNC, GENERATE, EVALUATE):
            first_work.setdefault((span.actor, span.step), span)
    for (_, step), work in first_work.items():
        for publish in _once(publishes, step, ranks):
            yield Order(publish.node, publish.end_ns, work.node, work.start_ns)


def _scores(spans: Sequence[ActorSpan]) -> Iterator[Order]:
    blocks = [span for span in spans if span.role == ROLLOUT and span.activity in (GENERATE, EVALUATE)]
    scores = [span for span in spans if span.role == REWARD and span.activity == SCORE]
    counts = Counter((span.step, span.tokens) for span in blocks)
    score_counts = Counter((span.step, span.tokens) for span in scores)
    by_key = {(span.step, span.tokens): span for span in blocks}
    for score in scores:
        key = (score.step, score.tokens)
        if score.tokens and counts[key] == 1 and score_counts[key] == 1:
            block = by_key[key]
            yield Order(block.node, block.end_ns, score.node, score.start_ns)


def _batches(spans: Sequence[ActorSpan]) -> Iterator[Order]:
    updates = _by_step(span for span in spans if span.activity == UPDATE)
    ranks = len({span.actor for span in spans if span.role == LEARNER})
    for score in (span for span in spans if span.role == REWARD and span.activity == SCORE):
        for update in _once(updates, score.step, SPANS_PER_UPDATE * ranks):
            yield Order(score.node, score.end_ns, update.node, update.start_ns)


def _by_step(spans: Iterable[ActorSpan]) -> dict[int, list[ActorSpan]]:
    found: dict[int, list[ActorSpan]] = {}
    for span in spans:
        found.setdefault(span.step, []).append(span)
    return found


def _once(by_step: Mapping[int, list[ActorSpan]], step: int, most: int) -> list[ActorSpan]:
    """The spans of a step, unless there are so many that the step was done more than once: which of them
    came first cannot be told before the clocks agree.
    """
    found = by_step.get(step, [])
    return found if len(found) <= most else []
