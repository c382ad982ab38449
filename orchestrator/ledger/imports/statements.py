"""Turns what an importer read into events of the ledger, without duplicates.

The `event_id` of a statement depends only on its content, so that importing a file again, or a longer
version of it, only adds what is new.

The ledger attributes usage to runs. If lines of one run belong to different stages or purposes, they are
booked as separate runs: `RUN/STAGE` or `RUN/STAGE/PURPOSE`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from orchestrator.ledger.calendar import HOUR_NS, day_of
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.events import SCHEMA_VERSION, Event, RunDeclared, UsageStated, parse_event
from orchestrator.ledger.labels import Labels, labels_of
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.money import split_evenly

PURPOSES = ("final", "ablation", "sweep", "debug", "failed", "data", "evaluation", "distillation")
"""What a run can be for."""

UNSTATED = "unstated"
"""The purpose of imported usage without one."""

STATED = "stated"
"""The activity of all imported usage."""

_CHUNK = 2000


@dataclass(frozen=True, slots=True)
class Statement:
    """One line of an imported account.

    `where` is its location for people (`file:line`). `accelerator_ns` is None if the figure was not
    published. Without `start_ns` and `end_ns` the usage has no date. It is shared evenly by `nodes`;
    none means unknown.
    """

    where: str
    event_id: str
    run: str
    labels: Labels
    sku: str
    accelerator_ns: int | None
    start_ns: int | None = None
    end_ns: int | None = None
    unit_price: str = ""
    currency: str = ""
    source: str = ""
    nodes: tuple[str, ...] = ()

    @property
    def resource(self) -> str:
        """`cpu` for CPU slots, else `gpu`."""
        return "cpu" if self.sku == "cpu" or self.sku.startswith("cpu-") else "gpu"


@dataclass(frozen=True, slots=True)
class Imported:
    """The result of an import: how many lines were new, already known, or refused and why.

    `waiting` lists lines that will count once they are over, such as jobs that are still running.
    """

    new: int
    known: int
    refused: tuple[LedgerError, ...] = ()
    waiting: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()


@dataclass(slots=True)
class Lines:
    """What an importer read: statements, refusals with their location, and lines that do not count."""

    statements: list[Statement] = field(default_factory=list[Statement])
    refused: list[LedgerError] = field(default_factory=list[LedgerError])
    waiting: list[str] = field(default_factory=list[str])
    passed_over: list[str] = field(default_factory=list[str])


def identity(*parts: str) -> str:
    """An event id that depends only on `parts`."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def take(ledger: Ledger, lines: Lines, undated_ns: int) -> Imported:
    """Book the new statements; usage without a date counts at `undated_ns`.

    A statement that contradicts the ledger or has no price is refused, without affecting the others. Raises
    LedgerError if the store cannot be reached.
    """
    refused = list(lines.refused)
    known = _known_runs(ledger, lines.statements)
    labels = labels_of(known)
    stated = {event.event_id: event for event in known if isinstance(event, UsageStated)}
    split = _runs_of_several_kinds(lines.statements)
    events: list[Event] = []
    new = 0
    for statement in lines.statements:
        before = stated.get(statement.event_id)
        try:
            if before is not None:
                _require_same(before, statement)
                continue
            run_id, declared = _run_for(statement, labels, statement.run in split, undated_ns)
            usages = _usages(statement, run_id, undated_ns)
            _require_price(ledger, usages[0])
        except LedgerError as error:
            refused.append(_at(statement.where, error))
            continue
        if declared is not None:
            labels[run_id] = _stated(statement.labels)
            events.append(declared)
        events.extend(usages)
        stated[statement.event_id] = usages[0]
        new += 1
    ledger.book(events)
    known_before = len(lines.statements) - new - (len(refused) - len(lines.refused))
    return Imported(new, known_before, tuple(refused), tuple(lines.waiting), tuple(lines.passed_over))


def _run_names(statement: Statement) -> Iterator[str]:
    """The run ids that a statement may be booked under, the shortest first."""
    name = statement.run
    yield name
    if statement.labels.stage:
        name = f"{name}/{statement.labels.stage}"
        yield name
    if statement.labels.purpose:
        name = f"{name}/{statement.labels.purpose}"
        yield name
    yield f"{name}/{identity(*statement.labels)[:8]}"


def _known_runs(ledger: Ledger, statements: Sequence[Statement]) -> list[Event]:
    names = list(dict.fromkeys(name for statement in statements for name in _run_names(statement)))
    known: dict[str, Event] = {}
    for start in range(0, len(names), _CHUNK):
        chunk = names[start : start + _CHUNK]
        known.update((event.event_id, event) for event in ledger.events(chunk))
    return list(known.values())


def _runs_of_several_kinds(statements: Iterable[Statement]) -> set[str]:
    kinds: dict[str, set[Labels]] = {}
    for statement in statements:
        kinds.setdefault(statement.run, set()).add(statement.labels)
    return {run for run, labels in kinds.items() if len(labels) > 1}


def _run_for(
    statement: Statement, labels: Mapping[str, Labels], several: bool, undated_ns: int
) -> tuple[str, RunDeclared | None]:
    """The run that a statement is booked under, and its declaration if it is new."""
    names = list(_run_names(statement))
    for name in names[1 if several else 0 :]:
        found = labels.get(name)
        if found == _stated(statement.labels):
            return name, None
        if found is None:
            return name, _declaration(statement, name, undated_ns)
    raise LedgerError("run", statement.run, "a name that is not used by a run with other labels")


def _declaration(statement: Statement, run_id: str, undated_ns: int) -> RunDeclared:
    named = _stated(statement.labels)._asdict()
    event = parse_event(
        {
            "schema": SCHEMA_VERSION,
            "type": RunDeclared.type,
            "event_id": identity("run", run_id, *named.values()),
            "at_ns": undated_ns if statement.start_ns is None else statement.start_ns,
            "run_id": run_id,
            "attempt": 0,
            **named,
        }
    )
    assert isinstance(event, RunDeclared)
    return event


def _stated(labels: Labels) -> Labels:
    return labels if labels.purpose else labels._replace(purpose=UNSTATED)


def _usages(statement: Statement, run_id: str, undated_ns: int) -> list[UsageStated]:
    """One event per node. The first one has the id of the statement, which identifies the whole line."""
    nodes = statement.nodes or ("",)
    quantity = statement.accelerator_ns
    shares = [None] * len(nodes) if quantity is None else split_evenly(quantity, len(nodes))
    return [
        _usage(replace(statement, event_id=event_id, accelerator_ns=share), node, run_id, undated_ns)
        for event_id, share, node in zip(_ids(statement.event_id, nodes), shares, nodes, strict=True)
    ]


def _ids(event_id: str, nodes: Sequence[str]) -> list[str]:
    return [event_id, *(identity(event_id, node) for node in nodes[1:])]


def _usage(statement: Statement, node: str, run_id: str, undated_ns: int) -> UsageStated:
    quantity = statement.accelerator_ns
    event = parse_event(
        {
            "schema": SCHEMA_VERSION,
            "type": UsageStated.type,
            "event_id": statement.event_id,
            "run_id": run_id,
            "resource": statement.resource,
            "sku": statement.sku,
            "accelerator_ns": "" if quantity is None else str(quantity),
            "start_ns": undated_ns if statement.start_ns is None else statement.start_ns,
            "end_ns": undated_ns if statement.end_ns is None else statement.end_ns,
            "unit_price": statement.unit_price,
            "currency": statement.currency,
            "source": statement.source,
            "activity": STATED,
            "node": node,
        }
    )
    assert isinstance(event, UsageStated)
    return event


def _require_same(before: UsageStated, statement: Statement) -> None:
    """Refuse a line that differs from its earlier import. The quantity is compared with that of its first
    node, or with the whole if it was imported without nodes.
    """
    nodes = statement.nodes if before.node else ()
    whole = statement.accelerator_ns
    share = whole if whole is None or not nodes else split_evenly(whole, len(nodes))[0]
    now = "" if share is None else str(share)
    if before.accelerator_ns != now:
        hours = [f"{int(ns or 0) / HOUR_NS:g} accelerator-hours" for ns in (now, before.accelerator_ns)]
        where = f" for {before.node}" if before.node else ""
        raise LedgerError("hours", hours[0], f"{hours[1]}{where}, as imported before", "correct the event")


def _require_price(ledger: Ledger, usage: UsageStated) -> None:
    """Refuse usage that no report could price on its first day."""
    if not usage.accelerator_ns:
        return
    pricer = ledger.prices.pricer()
    day = day_of(usage.start_ns)
    if usage.unit_price:
        pricer.table.convert(Fraction(usage.unit_price), usage.currency, day)
    else:
        pricer.per_hour(usage.sku, usage.region, usage.commitment, day)


def _at(where: str, error: LedgerError) -> LedgerError:
    """The error with the location of the line."""
    return LedgerError(f"{where} {error.key}", error.value, error.allowed, error.hint)
