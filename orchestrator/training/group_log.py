"""The log of what happens to every group: the evidence that `orchestrator audit` checks.

The loop reports each record to its `Observer` when the event happens, and the observer appends it to
`groups.jsonl` as one line. The states of a group:

    requested --> arrived, ready ---------> trained
        |     \\-> arrived, uninformative    (dynamic sampling replaces it)
        |     \\-> arrived, refused          (not in flight any more)
        \\-> lost --> requested again
        \\-> dropped                        (requested in excess; it may have arrived, or arrive later)

`Started` says where training continues after a start, a resume or a rebuilt learner. Everything that an
earlier record says about later steps no longer counts from there on, and requests in flight are abandoned.

Steps count from 1, as in metrics.jsonl: step `n` turns version `n - 1` of the weights into version `n`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from orchestrator.training.buffer import Buffer, PendingGroup
from orchestrator.training.records import Batch, GroupTicket, WeightVersion

Fate = Literal["ready", "uninformative", "refused"]
"""What the buffer did with a scored group."""
FATES: tuple[Fate, ...] = ("ready", "uninformative", "refused")


@dataclass(frozen=True, slots=True)
class Started:
    """Training continues after `step` steps. Groups below `next_group` are done, except the `outstanding`
    ones, which are requested again. `max_staleness`, `groups_per_step` and `steps` are in force from here on.
    """

    event: ClassVar[str] = "started"
    step: int
    next_group: int
    outstanding: tuple[int, ...]
    steps: int
    max_staleness: int
    groups_per_step: int


@dataclass(frozen=True, slots=True)
class Requested:
    """Rollouts of these groups were requested while the learner was at `version`."""

    event: ClassVar[str] = "requested"
    version: WeightVersion
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Arrived:
    """These groups were sampled and scored: `tokens` response tokens each, the oldest of version `oldest`."""

    event: ClassVar[str] = "arrived"
    fate: Fate
    version: WeightVersion
    """The learner's version when the groups were requested."""
    groups: tuple[int, ...]
    tokens: tuple[int, ...]
    oldest: tuple[WeightVersion, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """The rollouts of these groups, or the weights to sample them with, were lost. The groups will be
    requested again.
    """

    event: ClassVar[str] = "lost"
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Dropped:
    """The batch of `version` was complete without these groups. Those in flight were cancelled."""

    event: ClassVar[str] = "dropped"
    version: WeightVersion
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trained:
    """The learner completed step `step` with these groups."""

    event: ClassVar[str] = "trained"
    step: int
    groups: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The evaluation after `step` steps sampled `groups` groups for held-out prompts, with
    `tokens` tokens in total.
    """

    event: ClassVar[str] = "evaluated"
    step: int
    groups: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Finished:
    """All steps are complete and the model is exported."""

    event: ClassVar[str] = "finished"
    step: int


GroupRecord = Started | Requested | Arrived | Lost | Dropped | Trained | Evaluated | Finished

_RECORDS: dict[str, type[GroupRecord]] = {
    kind.event: kind for kind in (Started, Requested, Arrived, Lost, Dropped, Trained, Evaluated, Finished)
}


def started(step: int, next_group: int, steps: int, buffer: Buffer) -> Started:
    """The record of a start after `step` of `steps` steps, with what the buffer holds."""
    outstanding = tuple(group.group_id for group in buffer.outstanding())
    return Started(step, next_group, outstanding, steps, buffer.max_staleness, buffer.groups_per_batch)


def requested(version: WeightVersion, groups: Sequence[PendingGroup]) -> Requested:
    """The record of a request at `version`."""
    return Requested(version, tuple(group.group_id for group in groups))


def trained(batch: Batch) -> Trained:
    """The record of an update with this batch."""
    return Trained(batch.step + 1, tuple(ticket.group_id for ticket in batch.tickets))


def arrived(fate: Fate, version: WeightVersion, tickets: Sequence[GroupTicket]) -> Arrived:
    """The record of scored groups that were requested at `version`."""
    return Arrived(
        fate,
        version,
        tuple(ticket.group_id for ticket in tickets),
        tuple(ticket.tokens for ticket in tickets),
        tuple(ticket.oldest_version for ticket in tickets),
    )


def record_fields(record: GroupRecord) -> dict[str, Any]:
    """The record as plain JSON.

    >>> record_fields(Trained(3, (16, 17)))
    {'event': 'trained', 'step': 3, 'groups': [16, 17]}
    """
    fields: dict[str, Any] = {"event": record.event}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        fields[field.name] = list(value) if isinstance(value, tuple) else value
    return fields


def record_from_json(line: str | bytes) -> GroupRecord:
    """Inverse of `record_fields`; fields that it does not know are ignored. Raises ValueError."""
    parsed: Any = json.loads(line)
    if not isinstance(parsed, dict):
        raise ValueError("it is not a JSON object")
    content: Mapping[str, Any] = parsed  # pyright: ignore[reportUnknownVariableType]
    kind = _RECORDS.get(str(content.get("event")))
    if kind is None:
        raise ValueError(f"event is {content.get('event')!r}, expected one of {', '.join(_RECORDS)}")
    values = {field.name: _value(field.name, str(field.type), content) for field in dataclasses.fields(kind)}
    record = kind(**values)
    if isinstance(record, Arrived) and not len(record.groups) == len(record.tokens) == len(record.oldest):
        raise ValueError("groups, tokens and oldest differ in length")
    return record


def _value(name: str, annotation: str, content: Mapping[str, Any]) -> Any:  # noqa: ANN401
    value = content.get(name)
    if annotation == "Fate":
        if value not in FATES:
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(FATES)}")
        return value
    if annotation.startswith("tuple"):
        if isinstance(value, list) and all(map(_is_count, value)):  # pyright: ignore[reportUnknownArgumentType]
            return tuple(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        raise ValueError(f"{name} is not a list of integers from 0 on")
    if not _is_count(value):
        raise ValueError(f"{name} is {value!r}, expected an integer from 0 on")
    return value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
