"""Reads lifetimes of actors from the event files that Ray writes. Does not need Ray.

Two formats of Ray 2.60 are supported, one JSON object (or a list of them) per line:

- *export events* (`RAY_enable_export_api_write_config=EXPORT_ACTOR,EXPORT_NODE`): the head node writes
  `logs/export_events/event_EXPORT_ACTOR.log` in its session directory. Times are whole seconds.
- *Ray events* (`RAY_enable_ray_event=1`): each node posts `ACTOR_DEFINITION_EVENT` and
  `ACTOR_LIFECYCLE_EVENT` to `RAY_DASHBOARD_AGGREGATOR_AGENT_EVENTS_EXPORT_ADDR`, and the receiver stores
  them. Times are nanoseconds.

Each start of an actor begins a new **life** (an incarnation). The constructor runs before Ray reports the
actor as alive, so a life may do work from the moment its process was requested. Neither format includes
placement groups. With `RAY_enable_ray_event`, Ray writes no export events for actors.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from orchestrator.ledger.errors import LedgerError

SECOND_NS = 1_000_000_000
ROTATED = re.compile(r"\.(\d+)\.log$")
CAMEL = re.compile(r"(?<=[a-z0-9])[A-Z]")
CAUSE_LENGTH = 120
INTENDED = frozenset(
    {"RAY_KILL", "OUT_OF_SCOPE", "REF_DELETED", "EXPECTED_TERMINATION", "AUTOSCALER_DRAIN_IDLE"}
)
"""Reasons for the end of an actor or its node that are not failures."""


class Death(StrEnum):
    """How a life ended: not yet, intentionally, by a crash of the actor or its node, or for a reason that Ray
    does not report.
    """

    NONE = "none"
    UNKNOWN = "unknown"
    INTENDED = "intended"
    CRASHED = "crashed"


@dataclass(frozen=True, slots=True)
class Life:
    """One incarnation of an actor: requested at `pending_ns`, alive from `start_ns` (None: never) to `end_ns`
    (None: still alive, as far as the events go).

    A time reported by Ray lies in [t, t + `grain_ns`). Ids are hexadecimal; `group` is empty outside
    placement groups. `gpus` and `cpus` are the resources of the actor.
    """

    actor_id: str
    number: int
    name: str
    class_name: str
    job_id: str
    node: str
    group: str
    gpus: float
    cpus: float
    pending_ns: int
    start_ns: int | None
    end_ns: int | None
    death: Death
    cause: str
    grain_ns: int

    @property
    def holds(self) -> bool:
        """Whether a lease must exist for it: an actor without resources holds nothing."""
        return bool(self.group) or self.gpus > 0 or self.cpus >= 1

    @property
    def labels(self) -> tuple[str, ...]:
        """The names under which its work may be booked: the name used by `cost watch`, and `<lease>/<slot>`
        if the actor is called `<lease>/<slot>/<life>`, as in runs of this project.
        """
        watched = f"{self.name or self.class_name}-{self.actor_id[:8]}"
        slot, slash, number = self.name.rpartition("/")
        return (watched, slot) if slash and number.isdigit() else (watched,)

    def overlaps(self, start_ns: int, end_ns: int) -> bool:
        """Whether it was requested before `end_ns` and had not ended by `start_ns`."""
        return self.pending_ns < end_ns and (self.end_ns is None or self.end_ns > start_ns)


@dataclass(frozen=True, slots=True)
class Recording:
    """The content of event files: lives in order of actor and number; the names of each node by node id; the
    first and last time; the digests of the files; and the precision of the least exact time.
    """

    lives: tuple[Life, ...]
    nodes: Mapping[str, tuple[str, ...]]
    first_ns: int
    last_ns: int
    files: Mapping[str, str]
    precision_ns: int


def read_ray_events(path: Path) -> Recording:
    """Read a file of events, or a directory: all export events of actors and nodes below it, and its
    `*.jsonl` files. Raises LedgerError, which names the line.
    """
    files = _files(path)
    seen: set[str] = set()
    actors: dict[str, _Actor] = {}
    nodes: dict[str, tuple[str, ...]] = {}
    digests: dict[str, str] = {}
    for file in files:
        content = file.read_bytes()
        digests[str(file)] = hashlib.sha256(content).hexdigest()
        for place, event in _events(file, content):
            try:
                if _identity(event) not in seen:
                    seen.add(_identity(event))
                    _take(event, actors, nodes)
            except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
                hint = f"{type(error).__name__}: {error}"
                raise LedgerError(place, json.dumps(event)[:200], "an event of Ray 2.60", hint) from error
    actors = {actor_id: actor for actor_id, actor in actors.items() if actor.changes}
    moments = [change.at_ns for actor in actors.values() for change in actor.changes]
    if not moments:
        hint = "RAY_enable_export_api_write_config=EXPORT_ACTOR,EXPORT_NODE, set where Ray is started"
        raise LedgerError(str(path), "no actor events", "actor events of Ray", hint)
    lives = [life for actor_id, actor in sorted(actors.items()) for life in actor.lives(actor_id)]
    return Recording(
        tuple(lives),
        nodes,
        min(moments),
        max(moments),
        digests,
        max((life.grain_ns for life in lives), default=1),
    )


def _files(path: Path) -> list[Path]:
    """The files of a path; rotated files come before their successors."""
    if path.is_file():
        return [path]
    exported = (path.rglob(f"event_EXPORT_{kind}*.log") for kind in ("ACTOR", "NODE"))
    found = {*path.glob("*.jsonl"), *(file for files in exported for file in files)}
    if not found:
        allowed = "a file of Ray events, or a directory with event_EXPORT_ACTOR.log or *.jsonl"
        raise LedgerError(str(path), "no event files" if path.is_dir() else "no such file", allowed)
    return sorted(found, key=_age)


def _age(path: Path) -> tuple[str, int, str]:
    rotated = ROTATED.search(path.name)
    return (str(path.parent), -int(rotated.group(1)) if rotated else 0, path.name)


def _events(file: Path, content: bytes) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The events of a file with their locations. An incomplete last line is skipped, since Ray
    may be writing it.
    """
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        if not line.strip():
            continue
        place = f"{file}:{number}"
        try:
            found = json.loads(line)
        except ValueError as error:
            raise LedgerError(place, repr(line[:120]), "one JSON object per line", str(error)) from error
        for event in found if isinstance(found, list) else [found]:
            if not isinstance(event, dict):
                raise LedgerError(place, repr(event)[:120], "a JSON object")
            yield place, event


def _identity(event: Mapping[str, Any]) -> str:
    return str(event.get("event_id") or event.get("eventId"))


def _take(event: Mapping[str, Any], actors: dict[str, _Actor], nodes: dict[str, tuple[str, ...]]) -> None:
    """Process an event of either format; events about anything but actors and nodes are ignored."""
    event = _snake(event)
    match event.get("event_type") or event["source_type"]:
        case "EXPORT_ACTOR":
            fields = event["event_data"]
            moment_ns = int(event["timestamp"]) * SECOND_NS
            actor = actors.setdefault(_hex(fields["actor_id"]), _Actor())
            actor.facts = fields
            actor.changes.append(_change(fields, moment_ns, SECOND_NS))
        case "ACTOR_DEFINITION_EVENT":
            fields = event["actor_definition_event"]
            actors.setdefault(_hex(fields["actor_id"]), _Actor()).facts = fields
        case "ACTOR_LIFECYCLE_EVENT":
            fields = event["actor_lifecycle_event"]
            actor = actors.setdefault(_hex(fields["actor_id"]), _Actor())
            actor.changes += [
                _change(one, _moment(one["timestamp"]), 1) for one in fields["state_transitions"]
            ]
        case "EXPORT_NODE":
            fields = event["event_data"]
            nodes[_hex(fields["node_id"])] = (fields["node_name"], fields["node_manager_address"])
        case "NODE_DEFINITION_EVENT":
            fields = event["node_definition_event"]
            nodes[_hex(fields["node_id"])] = (fields["node_name"], fields["node_ip_address"])
        case _:
            pass


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of state of an actor."""

    state: str
    at_ns: int
    grain_ns: int
    node: str
    death: Death
    cause: str


@dataclass(slots=True)
class _Actor:
    """One actor: its definition and its changes of state, in the order they were read."""

    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    changes: list[_Change] = field(default_factory=list[_Change])

    def lives(self, actor_id: str) -> list[Life]:
        """Its lives. If both formats report the actor, the more precise one is used."""
        grain_ns = min(change.grain_ns for change in self.changes)
        found: list[Life] = []
        for change in sorted(self.changes, key=lambda change: change.at_ns):
            living = bool(found) and found[-1].end_ns is None
            if change.grain_ns != grain_ns or change.state == "DEPENDENCIES_UNREADY":
                continue
            if change.state in ("DEAD", "RESTARTING") and living:
                ended = {"end_ns": change.at_ns, "death": change.death, "cause": change.cause}
                found[-1] = replace(found[-1], **ended)
                living = False
            if change.state != "DEAD" and not living:
                found.append(self._life(actor_id, len(found), change))
            if change.state == "ALIVE":
                found[-1] = replace(found[-1], start_ns=change.at_ns, node=change.node)
        return found

    def _life(self, actor_id: str, number: int, change: _Change) -> Life:
        facts = self.facts
        held: Mapping[str, float] = facts.get("required_resources") or {}
        return Life(
            actor_id=actor_id,
            number=number,
            name=facts.get("name", ""),
            class_name=facts.get("class_name", ""),
            job_id=_hex(facts.get("job_id", "")),
            node="",
            group=_hex(facts.get("placement_group_id") or ""),
            gpus=_amount(held, "GPU"),
            cpus=_amount(held, "CPU"),
            pending_ns=change.at_ns,
            start_ns=None,
            end_ns=None,
            death=Death.NONE,
            cause="",
            grain_ns=change.grain_ns,
        )


def _change(fields: Mapping[str, Any], at_ns: int, grain_ns: int) -> _Change:
    death, cause = Death.NONE, ""
    if fields["state"] == "RESTARTING":
        death, cause = Death.CRASHED, fields.get("restart_reason", "restarted")
    elif fields["state"] == "DEAD":
        death, cause = _death(fields.get("death_cause") or {})
    return _Change(fields["state"], at_ns, grain_ns, _hex(fields.get("node_id") or ""), death, cause)


def _death(stated: Mapping[str, Mapping[str, Any]]) -> tuple[Death, str]:
    """Whether a death was intended, and Ray's reason with the beginning of its message."""
    if not stated:
        return Death.UNKNOWN, "no cause reported"
    ((kind, context),) = stated.items()
    reason, text = str(context.get("reason", "")), str(context.get("error_message", ""))
    cause = f"{reason or kind}: {text[:CAUSE_LENGTH]}"
    node = str((context.get("node_death_info") or {}).get("reason", ""))
    wanted = reason in INTENDED or node in INTENDED or "exit type: INTENDED_" in text
    return (Death.INTENDED if wanted else Death.CRASHED), cause


def _amount(held: Mapping[str, float], resource: str) -> float:
    """How much of a resource an actor holds. In a placement group Ray calls it `GPU_group_<id>` and also
    `GPU_group_<bundle>_<id>`.
    """
    named = [float(value) for name, value in held.items() if name.startswith(f"{resource}_group_")]
    return max([float(held.get(resource, 0)), *named])


def _moment(text: str) -> int:
    """Nanoseconds of an RFC 3339 time with up to 9 decimals.

    >>> _moment("1970-01-01T00:00:01.000000002Z")
    1000000002
    """
    whole, _, fraction = text.removesuffix("Z").partition(".")
    since = datetime.fromisoformat(whole).replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since // timedelta(seconds=1)) * SECOND_NS + int(fraction.ljust(9, "0") or 0)


def _hex(text: str) -> str:
    """An id as hexadecimal digits, as Ray displays it; protobuf's JSON encodes it in base64."""
    return base64.b64decode(text, validate=True).hex()


def _snake(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Use the names of the protobuf files: depending on its configuration, Ray writes
    `actorId` or `actor_id`.
    """
    if isinstance(value, dict):
        return {
            CAMEL.sub(lambda hump: f"_{hump.group().lower()}", key): _snake(item)
            for key, item in value.items()
        }
    return [_snake(item) for item in value] if isinstance(value, list) else value
