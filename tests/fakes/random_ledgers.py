"""Hypothesis strategies for whole ledgers: leases, spans that overlap and extend beyond their lease,
losses, duplicates, corrections.

Times are within a few seconds of a midnight that is also the end of a month, so that examples are small and
often cut by it. Numbers shrink towards simple ledgers.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from orchestrator.ledger.booking import BookingPolicy
from orchestrator.ledger.calendar import DAY_NS, month_bounds
from orchestrator.ledger.events import (
    Correction,
    Event,
    Heartbeat,
    LeaseClosed,
    LeaseOpened,
    PurposeSet,
    RunDeclared,
    SpanRecorded,
    UsageStated,
    event_to_json,
)
from orchestrator.ledger.prices import PriceBook

MIDNIGHT = month_bounds("2026-02")[0] * DAY_NS
POLICY = BookingPolicy(grace_ns=40, skew_ns=3)
RUNS = ("r0", "r1", "r2")
LEASES = ("a", "b", "c")

moments = st.integers(-60, 60).map(lambda offset: MIDNIGHT + offset)
actors = st.sampled_from(("w0", "w1", "w2"))
activities = st.sampled_from(("generate", "update", "sync"))


@st.composite
def spans(draw: st.DrawFn, number: int) -> SpanRecorded:
    start = draw(moments)
    length = draw(st.integers(0, 40))
    served = draw(st.sampled_from(("", "", "", *RUNS)))
    return SpanRecorded(
        f"span-{number}",
        draw(st.sampled_from(LEASES)),
        draw(actors),
        draw(st.sampled_from(("rollout", "learner"))),
        draw(activities),
        start,
        start + length,
        number,
        length,
        served,
    )


@st.composite
def lifetimes(draw: st.DrawFn, lease: str, number: int) -> list[Event]:
    """The opening, heartbeats and close of a lease; any of them may be missing."""
    start = draw(moments)
    run = draw(st.sampled_from(RUNS))
    events: list[Event] = []
    if draw(st.integers(0, 9)):
        sku = draw(st.sampled_from(("h100", "a100")))
        events.append(LeaseOpened(f"open-{lease}", start, lease, run, 1, "gpu", sku, "n", "pg", number))
    events += [
        Heartbeat(f"beat-{lease}-{beat}", draw(moments), lease) for beat in range(draw(st.integers(0, 2)))
    ]
    if draw(st.booleans()):
        reason = draw(st.sampled_from(("released", "lost")))
        events.append(LeaseClosed(f"close-{lease}", start + draw(st.integers(-5, 90)), lease, reason))
    return events


@st.composite
def declarations(draw: st.DrawFn) -> list[Event]:
    events: list[Event] = []
    for run in RUNS:
        for number in range(draw(st.integers(0, 2))):
            team = draw(st.sampled_from(("blue", "green")))
            name = f"declared-{run}-{number}"
            events.append(
                RunDeclared(name, draw(moments), run, 1, "grpo", "debug", "o", "c", team, "x", "p", "")
            )
        if draw(st.booleans()):
            events.append(PurposeSet(f"purpose-{run}", draw(moments), run, "final"))
    return events


@st.composite
def stated(draw: st.DrawFn) -> list[Event]:
    if draw(st.booleans()):
        return []
    start = draw(moments)
    quantity = draw(st.sampled_from(("", "7", str(2**70), "123456789123456789123")))
    price, currency = draw(st.sampled_from((("", ""), ("2500000000000.50", "USD"))))
    end = start + draw(st.sampled_from((0, 5, 3 * DAY_NS)))
    run = draw(st.sampled_from(RUNS))
    return [UsageStated("stated", run, "gpu", "h100", quantity, start, end, price, currency, "a table")]


@st.composite
def corrections(draw: st.DrawFn, events: list[Event]) -> list[Event]:
    made: list[Event] = []
    targets = [event.event_id for event in events] + ["nobody"]
    for number in range(draw(st.integers(0, 3))):
        target = draw(st.sampled_from([*targets, *(event.event_id for event in made)]))
        replacement = ""
        if draw(st.booleans()):
            replacement = event_to_json(replace(draw(spans(100 + number)), event_id=f"new-{number}"))
        made.append(Correction(f"fix-{number}", draw(moments), target, "it was wrong", replacement))
    return made


@st.composite
def ledgers(draw: st.DrawFn, corrected: bool = True) -> list[Event]:
    """The distinct events of a ledger, in the order in which they were emitted."""
    events: list[Event] = draw(declarations())
    for number, lease in enumerate(LEASES):
        events += draw(lifetimes(lease, number))
    events += [draw(spans(number)) for number in range(draw(st.integers(0, 8)))]
    events += draw(stated())
    if corrected:
        events += draw(corrections(events))
    return events


def price_book() -> PriceBook:
    """Two SKUs at several dollars per nanosecond. The price of one changes at the
    midnight that all ledgers are about.
    """

    def price(sku: str, amount: str, first: str, end: str | None) -> dict[str, object]:
        return {
            "sku": sku,
            "resource": "gpu",
            "region": "x",
            "commitment": "on_demand",
            "amount": amount,
            "accelerators": 3,
            "currency": "USD",
            "from": first,
            "to": end,
            "source": "a test",
            "retrieved": "2026-01-01",
        }

    prices = [
        price("h100", "25200000000007", "2026-01-01", "2026-02-01"),
        price("h100", "19800000000000", "2026-02-01", None),
        price("a100", "8398800000001", "2020-01-01", None),
    ]
    return PriceBook.parse(
        {"name": "test", "currency": "USD", "region": "x", "commitment": "on_demand", "prices": prices}
    )
