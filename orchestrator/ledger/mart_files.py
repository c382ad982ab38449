"""The files of the mart: parts with slices, and the table of leases."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.ledger.booking import Slice
from orchestrator.ledger.calendar import DAY_NS

_NUMBERS = (
    *(("lease", "i"), ("part", "i"), ("day", "i"), ("run", "i"), ("step", "q")),
    *(("start_ns", "q"), ("end_ns", "q"), ("ns", "q"), ("tokens", "q")),
)


class PartWriter:
    """Collects the slices of some leases as columns, and writes them as one file."""

    def __init__(self, part: int) -> None:
        self.part = part
        self._numbers = {name: array(code) for name, code in _NUMBERS}
        self._codes = {"role": array("h"), "activity": array("h")}
        self._names: dict[str, dict[str, int]] = {"role": {}, "activity": {}}

    def __len__(self) -> int:
        return len(self._numbers["ns"])

    def add(self, lease: int, slices: Iterable[Slice], runs: dict[str, int]) -> int:
        """Take the slices of lease number `lease`; numbers runs as they appear.

        Returns how many slices there were.
        """
        columns = self._numbers
        leases, parts, days, run_numbers = columns["lease"], columns["part"], columns["day"], columns["run"]
        starts, ends, lengths = columns["start_ns"], columns["end_ns"], columns["ns"]
        steps, tokens = columns["step"], columns["tokens"]
        roles, activities = self._codes["role"], self._codes["activity"]
        role_codes, activity_codes = self._names["role"], self._names["activity"]
        before, part = len(lengths), self.part
        for start_ns, end_ns, ns, role, activity, run_id, _, step, count in slices:
            leases.append(lease)
            parts.append(part)
            days.append(start_ns // DAY_NS)
            run_numbers.append(runs.setdefault(run_id, len(runs)))
            roles.append(role_codes.setdefault(role, len(role_codes)))
            activities.append(activity_codes.setdefault(activity, len(activity_codes)))
            starts.append(start_ns)
            ends.append(end_ns)
            lengths.append(ns)
            steps.append(step)
            tokens.append(count)
        return len(lengths) - before

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        columns: dict[str, pa.Array] = {
            name: pa.array(np.frombuffer(values, dtype=np.dtype(values.typecode)))
            for name, values in self._numbers.items()
            if len(values)
        }
        for name, codes in self._codes.items():
            indices = pa.array(np.frombuffer(codes, dtype=np.int16))
            columns[name] = pa.DictionaryArray.from_arrays(indices, pa.array(list(self._names[name])))
        _write(pa.table(columns), path)


@dataclass(slots=True)
class LeaseRow:
    """A lease in the mart: its number, the part with its current slices, and what reports need to know of it."""

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
    rows: int


_LEASE_TYPES = {"int": pa.int64(), "str": pa.string(), "bool": pa.bool_()}
_LEASE_SCHEMA = pa.schema([(field.name, _LEASE_TYPES[str(field.type)]) for field in fields(LeaseRow)])


def read_leases(path: Path) -> dict[str, LeaseRow]:
    """The leases by id."""
    rows = pq.read_table(path).to_pylist()
    return {row["lease_id"]: LeaseRow(**row) for row in rows}


def write_leases(leases: Iterable[LeaseRow], path: Path) -> None:
    """Write all leases, whole or not at all."""
    rows = list(leases)
    columns = {name: [getattr(row, name) for row in rows] for name in _LEASE_SCHEMA.names}
    _write(pa.table(columns, schema=_LEASE_SCHEMA), path)


def _write(table: pa.Table, path: Path) -> None:
    unfinished = path.with_suffix(".unfinished")
    pq.write_table(table, unfinished, compression="zstd", row_group_size=1 << 20)
    unfinished.replace(path)
