"""Usage events: immutable facts about leases, spans and runs, identified by `event_id`.

On the wire an event is one flat JSON object with `schema`, `type` and the fields of its class
(docs/reference/usage-events.md). Unknown keys are ignored, so that newer emitters of the same schema may add
some. Times are integer nanoseconds since the epoch, UTC.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from orchestrator.ledger.errors import MalformedEventError

SCHEMA_VERSION = 1

_DECIMAL = re.compile(r"\d+(\.\d+)?", re.ASCII)

IDLE, LOST = "idle", "lost"
"""Activities that only the ledger books: lease time that no span covers."""

_RESERVED = frozenset({IDLE, LOST})

NO_ROLE = "none"
"""The role of `idle` and `lost` time."""


@dataclass(frozen=True, slots=True)
class RunDeclared:
    """Who owns a run and what it is for.

    The latest declaration of a run (by `at_ns`, then `event_id`) counts. Each attempt makes its own.
    """

    type: ClassVar[str] = "run_declared"
    event_id: str
    at_ns: int
    run_id: str
    attempt: int
    job: str
    purpose: str
    organisation: str
    cost_centre: str
    team: str
    project: str
    pipeline: str
    stage: str


@dataclass(frozen=True, slots=True)
class PurposeSet:
    """The final purpose of a run (`final`, `failed`, ...), stated after its declaration.

    The latest one counts.
    """

    type: ClassVar[str] = "purpose_set"
    event_id: str
    at_ns: int
    run_id: str
    purpose: str


@dataclass(frozen=True, slots=True)
class LeaseOpened:
    """From `at_ns` on the run holds one `resource` ("gpu" or "cpu") of kind `sku`: slot `slot` of `node`.

    `region` and `commitment` select one of the prices of a SKU; if empty, the price book's defaults apply.
    """

    type: ClassVar[str] = "lease_opened"
    event_id: str
    at_ns: int
    lease_id: str
    run_id: str
    attempt: int
    resource: str
    sku: str
    node: str
    placement_group: str
    slot: int
    region: str = ""
    commitment: str = ""


@dataclass(frozen=True, slots=True)
class LeaseClosed:
    """At `at_ns` the slot was released (`released`), or its holder was found dead (`lost`)."""

    type: ClassVar[str] = "lease_closed"
    event_id: str
    at_ns: int
    lease_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The holder of a lease was alive at `at_ns`."""

    type: ClassVar[str] = "heartbeat"
    event_id: str
    at_ns: int
    lease_id: str


@dataclass(frozen=True, slots=True)
class SpanRecorded:
    """`actor` used the lease for `activity` from `start_ns` to `end_ns` (start <= end).

    `run_id` is set if the actor worked for a run other than the one that holds the lease, such as a judge
    that serves several runs.
    """

    type: ClassVar[str] = "span_recorded"
    event_id: str
    lease_id: str
    actor: str
    role: str
    activity: str
    start_ns: int
    end_ns: int
    step: int
    tokens: int
    run_id: str = ""


@dataclass(frozen=True, slots=True)
class Correction:
    """The event `corrects` was wrong: it no longer counts, and `replacement` (the JSON of an event, or empty)
    counts in its place.

    Both stay in the journal. What a closed month already counted is reversed by an adjustment. Correcting a
    correction without a replacement restores the original event.
    """

    type: ClassVar[str] = "correction"
    event_id: str
    at_ns: int
    corrects: str
    reason: str
    replacement: str = ""


@dataclass(frozen=True, slots=True)
class UsageStated:
    """Usage accounted for by another system: a line of an imported account, not measured by leases and spans.

    `accelerator_ns` is the quantity used from `start_ns` on, as a decimal string, because 2,664,000
    accelerator-hours exceed 64 bits of nanoseconds. It is empty if the figure was not published.
    `unit_price` is money per accelerator-hour; empty means that the price book decides. `source` says where
    the line comes from.
    """

    type: ClassVar[str] = "usage_stated"
    event_id: str
    run_id: str
    resource: str
    sku: str
    accelerator_ns: str
    start_ns: int
    end_ns: int
    unit_price: str
    currency: str
    source: str
    role: str = NO_ROLE
    activity: str = "stated"
    node: str = ""
    region: str = ""
    commitment: str = ""


Event = (
    RunDeclared | PurposeSet | LeaseOpened | LeaseClosed | Heartbeat | SpanRecorded | Correction | UsageStated
)

EVENT_TYPES: dict[str, type[Any]] = {
    kind.type: kind
    for kind in (
        RunDeclared,
        PurposeSet,
        LeaseOpened,
        LeaseClosed,
        Heartbeat,
        SpanRecorded,
        Correction,
        UsageStated,
    )
}
CLOSE_REASONS = ("released", "lost")

_MAY_BE_EMPTY = frozenset(
    {"organisation", "cost_centre", "team", "project", "pipeline", "stage", "job", "placement_group", "node"}
    | {"region", "commitment", "replacement", "run_id", "accelerator_ns", "unit_price", "currency", "actor"}
)
_REQUIRED_RUN = frozenset({"run_declared", "purpose_set", "lease_opened", "usage_stated"})


def _specification(kind: type[Any]) -> tuple[tuple[str, bool, bool, bool], ...]:
    """(name, is an integer, is optional, may be empty) for each field of an event class."""
    rows: list[tuple[str, bool, bool, bool]] = []
    for name, field in kind.__dataclass_fields__.items():
        if name == "type":
            continue
        optional = isinstance(field.default, str)
        empty = name in _MAY_BE_EMPTY and not (name == "run_id" and kind.type in _REQUIRED_RUN)
        rows.append((name, field.type == "int", optional, empty))
    return tuple(rows)


_FIELDS = {name: _specification(kind) for name, kind in EVENT_TYPES.items()}


_LIMIT = 1 << 63


def parse_event(fields: Mapping[str, Any]) -> Event:
    """The event in a JSON object. Raises MalformedEventError, which names the field."""
    _require_storable(fields)
    return _event_of(fields)


def _event_of(fields: Mapping[str, Any]) -> Event:
    schema = fields.get("schema")
    if schema != SCHEMA_VERSION:
        raise MalformedEventError(
            "schema", repr(schema), str(SCHEMA_VERSION), "a newer emitter needs a newer ledger"
        )
    kind = fields.get("type")
    if not isinstance(kind, str) or kind not in EVENT_TYPES:
        raise MalformedEventError("type", repr(kind), ", ".join(EVENT_TYPES))
    values: list[Any] = []
    for name, integer, optional, empty in _FIELDS[kind]:
        value = fields.get(name)
        if integer:
            if type(value) is not int or not -_LIMIT <= value < _LIMIT:
                raise MalformedEventError(name, repr(value), "a 64-bit integer")
        elif value is None and optional and name not in fields:
            value = EVENT_TYPES[kind].__dataclass_fields__[name].default
        elif not isinstance(value, str) or not (value or empty):
            raise MalformedEventError(name, repr(value), "a string" if empty else "a non-empty string")
        values.append(value)
    event: Event = EVENT_TYPES[kind](*values)
    _check(event)
    return event


def _check(event: Event) -> None:
    if isinstance(event, SpanRecorded):
        if event.end_ns < event.start_ns:
            raise MalformedEventError(
                "end_ns", str(event.end_ns), f"{event.start_ns} or later", "a negative duration"
            )
        if event.activity in _RESERVED:
            raise MalformedEventError(
                "activity",
                event.activity,
                "an activity of an actor",
                "only the ledger books idle and lost time",
            )
    elif isinstance(event, LeaseClosed):
        if event.reason not in CLOSE_REASONS:
            raise MalformedEventError("reason", event.reason, ", ".join(CLOSE_REASONS))
    elif isinstance(event, UsageStated):
        if event.accelerator_ns and not (event.accelerator_ns.isascii() and event.accelerator_ns.isdigit()):
            raise MalformedEventError(
                "accelerator_ns", event.accelerator_ns, "a whole number of nanoseconds, 0 or more"
            )
        if event.end_ns < event.start_ns:
            raise MalformedEventError(
                "end_ns", str(event.end_ns), f"{event.start_ns} or later", "a negative duration"
            )
        if event.unit_price and not (_DECIMAL.fullmatch(event.unit_price) and event.currency):
            got = f"{event.unit_price} {event.currency}".strip()
            raise MalformedEventError("unit_price", got, "a decimal of 0 or more, with its currency")
    elif isinstance(event, Correction) and event.replacement:
        try:
            replacement = event_from_json(event.replacement)
        except MalformedEventError as error:
            raise MalformedEventError(
                "replacement", event.replacement, "the JSON of one event", str(error)
            ) from error
        if isinstance(replacement, Correction):
            raise MalformedEventError(
                "replacement",
                event.replacement,
                "an event that is not a correction",
                "correct the original event again",
            )


_TEXT = r'"([^"\\\x00-\x1f]+)"'
_NUMBER = r"(0|[1-9]\d{0,18})"
_match_span = re.compile(
    rf'{{"schema":{SCHEMA_VERSION},"type":"span_recorded","event_id":{_TEXT},"lease_id":{_TEXT},"actor":{_TEXT},'
    rf'"role":{_TEXT},"activity":{_TEXT},"start_ns":{_NUMBER},"end_ns":{_NUMBER},"step":{_NUMBER},'
    rf'"tokens":{_NUMBER}(?:,"run_id":(?:{_TEXT}|""))?}}',
    re.ASCII,
).fullmatch
"""A span as every emitter of this project writes it. Nearly all events are spans, and matching them takes a
third of the time of a JSON parser.
"""


class SpanLine(NamedTuple):
    """A valid span that is still JSON text: checked but not parsed, because a journal stores it as it is."""

    event_id: str
    lease_id: str
    run_id: str
    text: str

    type = SpanRecorded.type


def span_line(line: str) -> SpanLine | None:
    """The line, if it is a span in the usual form; None if `event_from_json` has to decide."""
    match = _match_span(line)
    if match is None:
        return None
    event_id, lease_id, _, _, activity, start, end, step, tokens, run_id = match.groups()
    start_ns, end_ns = int(start), int(end)
    if start_ns <= end_ns < _LIMIT and int(step) < _LIMIT and int(tokens) < _LIMIT:
        return SpanLine(event_id, lease_id, run_id or "", line) if activity not in _RESERVED else None
    return None


def _span_from_line(line: str) -> SpanRecorded | None:
    match = _match_span(line)
    if match is None:
        return None
    event_id, lease_id, actor, role, activity, start, end, step, tokens, run_id = match.groups()
    start_ns, end_ns, at_step, count = int(start), int(end), int(step), int(tokens)
    if not (start_ns <= end_ns < _LIMIT and at_step < _LIMIT and count < _LIMIT) or activity in _RESERVED:
        return None
    return SpanRecorded(
        event_id, lease_id, actor, role, activity, start_ns, end_ns, at_step, count, run_id or ""
    )


_decode = json.JSONDecoder().raw_decode


def event_from_json(line: str) -> Event:
    """The event in a line of JSON. Raises MalformedEventError."""
    span = _span_from_line(line)
    if span is not None:
        return span
    try:
        fields, end = _decode(line)  # like `json.loads`, but without its two searches for whitespace
    except (ValueError, RecursionError) as error:
        raise MalformedEventError("line", repr(line[:120]), "one JSON object", str(error)) from error
    if not isinstance(fields, dict) or (end != len(line) and not line[end:].isspace()):
        raise MalformedEventError("line", repr(line[:120]), "one JSON object")
    if "\\u" in line:
        _require_storable(fields)
    return _event_of(fields)


def _require_storable(fields: Mapping[str, Any]) -> None:
    """Reject what JSON can express but no database can store: NUL and lone surrogates."""
    for name, value in fields.items():
        if isinstance(value, str) and any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in value):
            raise MalformedEventError(name, ascii(value), "text without NUL and lone surrogates")


def event_to_json(event: Event) -> str:
    """The event as one line of a spool; the inverse of `event_from_json`."""
    fields: dict[str, Any] = {"schema": SCHEMA_VERSION, "type": event.type}
    for name in event.__slots__:
        fields[name] = getattr(event, name)
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
