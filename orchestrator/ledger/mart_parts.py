"""The parts of the mart: books some leases and writes their slices to a file."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.ledger.booking import (
    BookingPolicy,
    LeaseEvents,
    LeaseFacts,
    Slice,
    book_lease,
    group_by_lease,
    lease_facts,
)
from orchestrator.ledger.calendar import DAY_NS
from orchestrator.ledger.corrections import Corrections
from orchestrator.ledger.gc_pause import paused
from orchestrator.ledger.journal import Journal, lease_of


@dataclass(slots=True)
class LeaseRow:
    """A lease in the mart: its number, the part with its current slices, and the facts that reports need.

    `latest_ns` is the latest time in its events.
    """

    lease: int
    part: int
    lease_id: str
    run_id: str
    attempt: int
    node: str
    resource: str
    sku: str
    region: str
    commitment: str
    is_open: bool
    last_sign_ns: int
    latest_ns: int
    rows: int


@dataclass(frozen=True, slots=True)
class PartJob:
    """Book leases (id to number) into part `part`, from the events up to `through_seq`."""

    part: int
    path: Path
    leases: Mapping[str, int]
    through_seq: int
    corrections: Corrections
    policy: BookingPolicy


def book_part(job: PartJob, journal: Journal) -> list[LeaseRow]:
    """Book the leases of a job and write its file, unless there are no slices.

    Returns the leases that were opened.
    """
    with paused():
        return _book_part(job, journal)


def _book_part(job: PartJob, journal: Journal) -> list[LeaseRow]:
    found = job.corrections
    events = [event for event in found.replacements if lease_of(event) in job.leases]
    events += (
        event
        for event in journal.of_leases(job.leases, job.through_seq)
        if event.event_id not in found.corrected
    )
    writer = _PartWriter(job.part)
    rows: list[LeaseRow] = []
    for lease_id, lease in group_by_lease(events).items():
        row = _book_lease(lease, job.leases[lease_id], job.policy, writer)
        if row is not None:
            rows.append(row)
    writer.write(job.path)
    return rows


def _book_lease(
    lease: LeaseEvents, number: int, policy: BookingPolicy, writer: _PartWriter
) -> LeaseRow | None:
    facts, _ = lease_facts(lease, policy)
    if facts is None:
        return None
    until = facts.last_sign_ns if facts.closed is None else facts.closed.at_ns
    booked, _ = book_lease(lease, until, policy)
    rows = writer.add(number, facts.opened.run_id, booked.slices) if booked else 0
    return _lease_row(facts, number, writer.part, max(until, facts.last_sign_ns), rows)


def _lease_row(facts: LeaseFacts, number: int, part: int, latest_ns: int, rows: int) -> LeaseRow:
    opened = facts.opened
    return LeaseRow(
        lease=number,
        part=part,
        lease_id=opened.lease_id,
        run_id=opened.run_id,
        attempt=opened.attempt,
        node=opened.node,
        resource=opened.resource,
        sku=opened.sku,
        region=opened.region,
        commitment=opened.commitment,
        is_open=facts.closed is None,
        last_sign_ns=facts.last_sign_ns,
        latest_ns=latest_ns,
        rows=rows,
    )


class _PartWriter:
    """Collects slices as columns and writes them to one file.

    `served` is the run that a slice was for; null if that is the run that holds the lease.
    """

    def __init__(self, part: int) -> None:
        self.part = part
        self._small = {name: array("i") for name in ("lease", "part", "day", "step")}
        self._large = {name: array("q") for name in ("start_ns", "end_ns", "ns", "tokens")}
        self._codes = {name: array("i") for name in ("role", "activity", "served")}
        self._names = {name: _Numbering() for name in self._codes}

    def add(self, lease: int, holder: str, slices: Sequence[Slice]) -> int:
        """Add the slices of lease number `lease`, held by run `holder`. Returns their number."""
        if not slices:
            return 0
        starts, ends, lengths, roles, activities, runs, _, steps, tokens = zip(*slices, strict=True)
        columns = {"start_ns": starts, "end_ns": ends, "ns": lengths, "tokens": tokens}
        for name, values in columns.items():
            self._large[name].extend(values)
        count, small = len(starts), self._small
        small["lease"].extend([lease] * count)
        small["part"].extend([self.part] * count)
        small["day"].extend([start_ns // DAY_NS for start_ns in starts])
        small["step"].extend([min(step, _STEP_LIMIT) for step in steps])
        self._codes["role"].extend(map(self._names["role"].__getitem__, roles))
        self._codes["activity"].extend(map(self._names["activity"].__getitem__, activities))
        served = self._names["served"]
        self._codes["served"].extend([-1 if run_id == holder else served[run_id] for run_id in runs])
        return count

    def write(self, path: Path) -> None:
        """Write the file atomically; nothing if there are no slices."""
        if not self._small["lease"]:
            return
        columns: dict[str, pa.Array] = {}
        for name, values in (*self._small.items(), *self._large.items()):
            columns[name] = pa.array(np.frombuffer(values, dtype=np.dtype(values.typecode)))
        for name, codes in self._codes.items():
            indices = np.frombuffer(codes, dtype=np.int32)
            names = pa.array(list(self._names[name]), pa.string())
            columns[name] = pa.DictionaryArray.from_arrays(pa.array(indices, mask=indices < 0), names)
        write_table(pa.table(columns), path)


class _Numbering(dict[str, int]):
    """Numbers names in order of first use: 0, 1, 2, ..."""

    def __missing__(self, name: str) -> int:
        self[name] = number = len(self)
        return number


_STEP_LIMIT = (1 << 31) - 1

_LEASE_TYPES = {"int": pa.int64(), "str": pa.string(), "bool": pa.bool_()}
_LEASE_SCHEMA = pa.schema([(field.name, _LEASE_TYPES[str(field.type)]) for field in fields(LeaseRow)])


def read_leases(path: Path) -> dict[str, LeaseRow]:
    """The leases by id."""
    rows = pq.read_table(path).to_pylist()
    return {row["lease_id"]: LeaseRow(**row) for row in rows}


def write_leases(leases: Iterable[LeaseRow], path: Path) -> None:
    """Write all leases atomically."""
    rows = list(leases)
    columns = {name: [getattr(row, name) for row in rows] for name in _LEASE_SCHEMA.names}
    write_table(pa.table(columns, schema=_LEASE_SCHEMA), path)


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file atomically."""
    unfinished = path.with_suffix(".unfinished")
    pq.write_table(table, unfinished, compression="zstd", row_group_size=1 << 20)
    unfinished.replace(path)
