"""The mart: the slices of all leases as Parquet files, so that DuckDB can report over tens of
millions of spans.

Ledgers of that size are the only reason for it: deriving ten million spans in plain Python takes minutes,
and every report would do it again (docs/reference/ledger.md has measurements). Small ledgers are answered
from the journal.

The mart is a cache of the journal. It may be deleted, and is rebuilt if it belongs to another journal or
booking policy. Its answers equal those of `derive.lines_from_events` to the nanosecond.

    N.parquet          slices: lease, part, day, role, activity, served, start_ns, end_ns, ns, step, tokens
    leases-N.parquet   each lease: its facts, and the part that contains its current slices
    index.json         the last event that the mart includes, and its parts

Leases are numbered, so that the large table contains small integers. A lease with new events is booked again
as a whole into a new part; its older slices are skipped, and dropped when there are too many. A lease that
nobody closed is stored up to its last sign of life, because the rest depends on the time of the report.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.ledger.booking import BookingPolicy, tail
from orchestrator.ledger.calendar import day_of
from orchestrator.ledger.corrections import Corrections, resolve
from orchestrator.ledger.entries import stated_entries
from orchestrator.ledger.events import Correction, Event, UsageStated, event_from_json
from orchestrator.ledger.journal import Journal, lease_of
from orchestrator.ledger.labels import UNLABELLED, Labels, labels_of
from orchestrator.ledger.lines import LineKey, Lines, add, keep_fields, left_out, to_lines
from orchestrator.ledger.mart_parts import LeaseRow, PartJob, book_part, read_leases, write_leases
from orchestrator.ledger.mart_workers import book_parts

if TYPE_CHECKING:
    import duckdb

FORMAT = 2
BATCH_EVENTS = 250_000
"""Leases are booked in batches of about this many events (about 300 MB)."""
WORTHWHILE_EVENTS = 20_000
"""With fewer events than this, answering from the journal is as fast."""
PARALLEL_EVENTS = 500_000
"""With more events than this to book, several processes share the work."""
MAX_PARTS = 64
MAX_STALE_SHARE = 0.5


@dataclass
class Index:
    """The content of `index.json`. If `made_from` changes, the mart is rebuilt."""

    made_from: dict[str, Any]
    seq: int = 0
    latest_ns: int = 0
    parts: list[int] = field(default_factory=list[int])
    next_part: int = 1
    next_lease: int = 1
    rows: int = 0
    stale_rows: int = 0
    leases: str = ""


class Mart:
    """The mart of a journal, in its own directory."""

    def __init__(
        self,
        folder: Path,
        journal: Journal,
        policy: BookingPolicy,
        url: str = "",
        worthwhile_events: int = WORTHWHILE_EVENTS,
    ) -> None:
        """`url` is that of the journal, so that worker processes can read it; if empty, there are none."""
        self._folder, self._journal, self._policy, self._url = folder, journal, policy, url
        self._worthwhile_events = worthwhile_events

    def lines(self, as_of_ns: int, keep: Collection[str]) -> tuple[int, Lines] | None:
        """All lines as of `as_of_ns`, as `lines_from_events` returns them, with the fields outside
        `keep` left empty.

        Updates the mart first, and also returns the last event that it includes. None if the journal is too
        small to be worth it, if the mart cannot be written, or if an event is later than `as_of_ns`: the
        mart knows no earlier state.
        """
        if self._journal.head() < self._worthwhile_events:
            return None
        try:
            return self._lines(as_of_ns, keep)
        except OSError:  # the mart is only a cache: if it cannot be written, the journal answers
            return None

    def _lines(self, as_of_ns: int, keep: Collection[str]) -> tuple[int, Lines] | None:
        with self._locked():
            index = self._refresh()
            if index.latest_ns > as_of_ns:
                return None
            without_lease = self._journal.events_without_lease(0, index.seq)
            found = self._resolve(event for event in without_lease if isinstance(event, Correction))
            counted = [event for event in without_lease if event.event_id not in found.corrected]
            counted += [event for event in found.replacements if not lease_of(event)]
            labels = labels_of(counted)
            lines = self._leased(index, labels, keep)
            add(lines, keep_fields(self._tails(index, labels, as_of_ns), keep).items())
        stated = stated_entries(event for event in counted if isinstance(event, UsageStated))
        add(lines, keep_fields(to_lines(stated, labels), keep).items())
        return index.seq, lines

    def parts(self) -> list[Path]:
        """The files with slices, including stale ones, after updating the mart."""
        with self._locked():
            return self._part_files(self._refresh())

    @contextmanager
    def _locked(self) -> Generator[None]:
        """Exclude other processes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._folder / "lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _refresh(self) -> Index:
        index = self._read_index()
        head = self._journal.head()
        if index.seq == head:
            return index
        changed = self._with_corrected(self._journal.changed_leases(index.seq, head), index.seq, head)
        leases = read_leases(self._folder / index.leases) if index.leases else {}
        jobs = self._jobs(changed, head, index, leases)
        if self._url and sum(changed.values()) >= PARALLEL_EVENTS:
            booked = book_parts(self._url, jobs)
        else:
            booked = [book_part(job, self._journal) for job in jobs]
        for lease_id in changed:
            before = leases.pop(lease_id, None)
            index.stale_rows += before.rows if before else 0
        for job, rows in zip(jobs, booked, strict=True):
            leases.update((row.lease_id, row) for row in rows)
            index.latest_ns = max([index.latest_ns, *(row.latest_ns for row in rows)])
            if sum(row.rows for row in rows):
                index.parts.append(job.part)
                index.rows += sum(row.rows for row in rows)
        index.seq = head
        self._save(index, leases)
        if len(index.parts) > MAX_PARTS or index.stale_rows > MAX_STALE_SHARE * index.rows:
            self._compact(index, leases)
        return index

    def _jobs(
        self, changed: Mapping[str, int], head: int, index: Index, leases: Mapping[str, LeaseRow]
    ) -> list[PartJob]:
        """The work of an update, split into parts; assigns numbers to new leases and parts."""
        corrections = (
            event for event in self._journal.events_without_lease(0, head) if isinstance(event, Correction)
        )
        found = self._resolve(corrections)
        jobs: list[PartJob] = []
        for batch in _batches(changed):
            numbers: dict[str, int] = {}
            for lease_id in batch:
                if lease_id in leases:
                    numbers[lease_id] = leases[lease_id].lease
                else:
                    numbers[lease_id] = index.next_lease
                    index.next_lease += 1
            path = self._folder / f"{index.next_part}.parquet"
            jobs.append(PartJob(index.next_part, path, numbers, head, found, self._policy))
            index.next_part += 1
        return jobs

    def _with_corrected(self, changed: dict[str, int], after_seq: int, head: int) -> dict[str, int]:
        """Leases with new events, and leases that a correction moves an event from or to."""
        fresh = {event.event_id for event in self._journal.events_without_lease(after_seq, head)}
        corrections = [
            event for event in self._journal.events_without_lease(0, head) if isinstance(event, Correction)
        ]
        by_id = {event.event_id: event for event in self._journal.find({one.corrects for one in corrections})}
        touched: set[str] = set()
        for correction in corrections:
            moved = _leases_of(correction, by_id)
            if correction.event_id in fresh or not moved.isdisjoint(changed):
                touched |= moved
        return {**dict.fromkeys(touched, 1), **changed}

    def _resolve(self, corrections: Iterable[Correction]) -> Corrections:
        listed = list(corrections)
        known = {event.event_id for event in self._journal.find({event.corrects for event in listed})}
        return resolve(listed, known)

    def _leased(self, index: Index, labels: Mapping[str, Labels], keep: Collection[str]) -> Lines:
        """The lines of the slices in the parts."""
        if not index.rows:
            return {}
        blanks = left_out(keep)
        of_lease = [name for name in _OF_LEASE if name not in blanks]
        lines: Lines = {}
        for run_id, day, role, activity, *facts, ns in self._sum(index, of_lease):
            owned = labels.get(run_id, UNLABELLED)._asdict()
            used = {"day": day, "run_id": run_id, "role": role, "activity": activity}
            key = _EMPTY._replace(**owned | used | dict(zip(of_lease, facts, strict=True)) | blanks)
            lines[key] = lines.get(key, 0) + int(ns)
        return lines

    def _sum(self, index: Index, of_lease: list[str]) -> list[tuple[Any, ...]]:
        """(run, day, role, activity, *of_lease, ns) of all current slices. DuckDB sums in 128 bits."""
        files = ", ".join(_quoted(path) for path in self._part_files(index))
        leases = _quoted(self._folder / index.leases)
        facts = "".join(f", {name}" for name in of_lease)
        current = "SEMI JOIN leases USING (lease, part)" if index.stale_rows else ""
        query = f"""
            WITH leases AS (SELECT * FROM read_parquet({leases})),
            slices AS (
                SELECT lease, served, day, role, activity, sum(ns) AS ns
                FROM read_parquet([{files}]) {current} GROUP BY ALL
            )
            SELECT coalesce(served, run_id) AS run, day, role, activity{facts}, sum(ns)
            FROM slices JOIN leases USING (lease) GROUP BY ALL
        """
        with self._duckdb() as connection:
            return connection.execute(query).fetchall()

    def _tails(self, index: Index, labels: Mapping[str, Labels], as_of_ns: int) -> Lines:
        """The lines of open leases since their last sign of life."""
        if not index.leases:
            return {}
        query = f"SELECT * FROM read_parquet({_quoted(self._folder / index.leases)}) WHERE is_open"
        with self._duckdb() as connection:
            rows = connection.execute(query).fetchall()
        lines: Lines = {}
        for row in rows:
            lease = LeaseRow(*row)
            facts = {name: getattr(lease, name) for name in _OF_LEASE}
            owner = labels.get(lease.run_id, UNLABELLED)
            held = _EMPTY._replace(run_id=lease.run_id, **facts, **owner._asdict())
            for piece in tail(lease.run_id, lease.last_sign_ns, as_of_ns, self._policy):
                day = day_of(piece.start_ns)
                key = held._replace(day=day, role=piece.role, activity=piece.activity)
                lines[key] = lines.get(key, 0) + piece.ns
        return lines

    @contextmanager
    def _duckdb(self) -> Generator[duckdb.DuckDBPyConnection]:
        import duckdb

        with duckdb.connect() as connection:
            connection.execute("SET memory_limit = '1GB'; SET preserve_insertion_order = false")
            yield connection

    def _compact(self, index: Index, leases: dict[str, LeaseRow]) -> None:
        """Merge all parts into one that holds only the current slices."""
        import duckdb

        old = self._part_files(index)
        number = index.next_part
        unfinished = self._folder / f"{number}.unfinished"
        files = ", ".join(_quoted(path) for path in old)
        query = f"""
            COPY (
                SELECT * REPLACE ({number}::INTEGER AS part) FROM (
                    FROM read_parquet([{files}]) AS slices
                    SEMI JOIN read_parquet({_quoted(self._folder / index.leases)}) AS leases
                    ON slices.lease = leases.lease AND slices.part = leases.part
                )
            ) TO {_quoted(unfinished)} (FORMAT parquet, COMPRESSION zstd)
        """
        with self._duckdb() as connection:
            try:
                connection.execute(query)
            except duckdb.IOException as error:
                raise OSError(str(error)) from error
        unfinished.replace(self._folder / f"{number}.parquet")
        for row in leases.values():
            row.part = number
        index.parts, index.next_part = [number], number + 1
        index.rows, index.stale_rows = index.rows - index.stale_rows, 0
        self._save(index, leases)
        for path in old:
            path.unlink()

    def _part_files(self, index: Index) -> list[Path]:
        return [self._folder / f"{part}.parquet" for part in index.parts]

    def _read_index(self) -> Index:
        """The index; a new one, in an emptied directory, if the mart was built from something else."""
        first = next(self._journal.events(through_seq=1), None)
        made_from = {
            "format": FORMAT,
            "first_event": first.event.event_id if first else "",
            "policy": asdict(self._policy),
        }
        path = self._folder / "index.json"
        if path.exists():
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields["made_from"] == made_from and fields["seq"] <= self._journal.head():
                return Index(**fields)
            path.unlink()
        for leftover in self._folder.glob("*.parquet"):
            leftover.unlink()
        return Index(made_from)

    def _save(self, index: Index, leases: dict[str, LeaseRow]) -> None:
        before = index.leases
        index.leases = f"leases-{index.seq}-{index.next_part}.parquet"
        write_leases(leases.values(), self._folder / index.leases)
        unfinished = self._folder / "index.unfinished"
        unfinished.write_text(json.dumps(asdict(index)), encoding="utf-8")
        unfinished.replace(self._folder / "index.json")
        if before and before != index.leases:
            (self._folder / before).unlink()


_OF_LEASE = ("attempt", "lease_id", "node", "resource", "sku", "region", "commitment")
_EMPTY = LineKey(0, "", 0, *[""] * 18)


def default_folder(url: str) -> Path:
    """Next to a SQLite file, otherwise in the user's cache directory, one directory per database."""
    if url.startswith("sqlite:///") and not url.endswith(":memory:"):
        return Path(f"{url.removeprefix('sqlite:///')}.mart")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "orchestrator" / "ledger" / hashlib.sha256(url.encode()).hexdigest()[:16]


def _batches(changed: Mapping[str, int]) -> Iterator[list[str]]:
    """Split leases into batches of about BATCH_EVENTS events."""
    batch: list[str] = []
    size = 0
    for lease_id, events in changed.items():
        batch.append(lease_id)
        size += events
        if size >= BATCH_EVENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _leases_of(correction: Correction, by_id: Mapping[str, Event]) -> set[str]:
    """The leases that a correction takes an event from or adds one to."""
    leases: set[str] = set()
    seen: set[str] = set()
    following: Correction | None = correction
    while following is not None and following.event_id not in seen:
        seen.add(following.event_id)
        if following.replacement:
            leases.add(lease_of(event_from_json(following.replacement)))
        target = by_id.get(following.corrects)
        if target is not None:
            leases.add(lease_of(target))
        following = target if isinstance(target, Correction) else None
    return leases - {""}


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
