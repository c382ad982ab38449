"""The usage events of training, which are all that training and the ledger have in common.

Training only emits events and never reads them. A `UsageSink` appends an event to a local spool before it
counts as sent; `launch/` ships the spool to a ledger, exactly once by event id. Times are integer
nanoseconds since the epoch, UTC.

- a *lease*: one accelerator (or CPU slot) held by this run from `opened` to `closed`;
- a *span*: what an actor did during a lease, as a role and an activity. Time that no span covers is idle.
  Spans of several actors that share one slot may overlap; the ledger splits the overlap equally.

An event is one flat JSON object with `schema` = 1, `event_id` and `type` (the snake_case class name).
docs/reference/usage-events.md lists the fields.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import time
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Protocol

SCHEMA_VERSION = 1


class Role(StrEnum):
    """Which role of the run used the accelerator."""

    ROLLOUT = "rollout"
    REWARD = "reward"
    LEARNER = "learner"


class Activity(StrEnum):
    """What the accelerator was used for."""

    LOAD = "load"
    GENERATE = "generate"
    SCORE = "score"
    UPDATE = "update"
    SYNC = "sync"
    CHECKPOINT = "checkpoint"
    EVALUATE = "evaluate"


class CloseReason(StrEnum):
    """Why a lease ended. LOST means that its holder was found dead; the time since its last sign of life
    is then `lost` instead of idle.
    """

    RELEASED = "released"
    LOST = "lost"


def new_event_id() -> str:
    """Create an event id that is unique across all actors.

    It begins with the time, so that ids of the same period are adjacent in a database index.
    """
    return f"{time.time_ns():016x}{os.urandom(8).hex()}"


@dataclasses.dataclass(frozen=True, slots=True)
class RunDeclared:
    """The owner and purpose of a run, emitted once per attempt before its leases."""

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


@dataclasses.dataclass(frozen=True, slots=True)
class PurposeSet:
    """The final purpose of a run, which replaces the declared one; `failed` if the run did not succeed."""

    type: ClassVar[str] = "purpose_set"
    event_id: str
    at_ns: int
    run_id: str
    purpose: str


@dataclasses.dataclass(frozen=True, slots=True)
class LeaseOpened:
    """From `at_ns` on, the run holds one `resource` ("gpu" or "cpu") of kind `sku`, slot `slot` of `node`."""

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


@dataclasses.dataclass(frozen=True, slots=True)
class LeaseClosed:
    """The run released the slot at `at_ns`, or lost it."""

    type: ClassVar[str] = "lease_closed"
    event_id: str
    at_ns: int
    lease_id: str
    reason: CloseReason


@dataclasses.dataclass(frozen=True, slots=True)
class Heartbeat:
    """The holder of a lease was alive at `at_ns`."""

    type: ClassVar[str] = "heartbeat"
    event_id: str
    at_ns: int
    lease_id: str


@dataclasses.dataclass(frozen=True, slots=True)
class SpanRecorded:
    """`actor` used the lease for `activity` from `start_ns` to `end_ns` (start <= end), for learner step
    `step`. `tokens` is the number of tokens sampled or trained, 0 if that has no meaning.
    """

    type: ClassVar[str] = "span_recorded"
    event_id: str
    lease_id: str
    actor: str
    role: Role
    activity: Activity
    start_ns: int
    end_ns: int
    step: int
    tokens: int


UsageEvent = RunDeclared | PurposeSet | LeaseOpened | LeaseClosed | Heartbeat | SpanRecorded


def event_to_json(event: UsageEvent) -> str:
    """Format an event as a line of a spool: its fields, `type` and `schema`."""
    fields: dict[str, Any] = {"schema": SCHEMA_VERSION, "type": event.type}
    for name in event.__slots__:
        fields[name] = getattr(event, name)
    return json.dumps(fields, separators=(",", ":"))


class UsageSink(Protocol):
    """Receives usage events. It must not block except for a local append, and
    must not lose accepted events.
    """

    def emit(self, event: UsageEvent) -> None: ...


class MemorySink:
    """Keeps events in a list: the in-memory implementation for simulations and tests."""

    def __init__(self) -> None:
        self.events: list[UsageEvent] = []

    def emit(self, event: UsageEvent) -> None:
        self.events.append(event)


class SpoolSink:
    """Appends each event as one line to its own file, with a single `write` system call.

    A line that the kernel has accepted survives the death of this process; a power failure loses at most the
    contents of the page cache. Each spool file has one writer; readers only take lines that end in a newline.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def emit(self, event: UsageEvent) -> None:
        """Append an event. Raises OSError if the disk rejects it; no part of it is left in the file then."""
        line = (event_to_json(event) + "\n").encode()
        written = os.write(self._fd, line)
        if written != len(line):
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
            raise OSError(errno.ENOSPC, "only a part of the line was written", str(self._path))

    def close(self) -> None:
        """Close the file. `emit` must not be called afterwards."""
        os.close(self._fd)
