"""Measures how the ledger scales: ingest of usage events and a monthly report, with 1 to 30 million spans.

    python benchmarks/ledger_scale.py [--json] [--spans 1,3,10,30] [--folder DIR]

For each size, in a separate folder (30 million spans take about 25 GB on disk):

- spool files are written as actors write them: runs of eight teams, each with eight slots held for two days;
  on each slot a rollout worker and a learner rank with adjacent spans, which overlap in one of eight steps;
- *ingest*: the spool is shipped to SQLite, durably, in batches, and the leases are booked into the Parquet
  mart. The figure includes both; `ship_s` and `book_s` are the separate times;
- *report*: in a separate process, a priced month by team x role x activity, as in `orchestrator cost report
  --by`; `report_rss_bytes` is the peak memory of that process, including imports;
- *plain DuckDB*: in a separate process, a bare GROUP BY role, activity over the same Parquet, unpriced.

`*_cpu_s` are CPU seconds of all processes, which are more meaningful than wall time on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.ledger.calendar import DAY_NS, month_bounds
from orchestrator.ledger.ledger import Ledger

sys.path.insert(0, str(Path(__file__).parent))
from machine import describe, write_result

MILLION = 1_000_000
TEAMS, SLOTS, STEP_NS = 8, 8, 2_000_000_000
SPANS_A_LEASE = 2 * (2 * DAY_NS // STEP_NS // 10)
MONTH = "2026-03"
START = month_bounds(MONTH)[0] * DAY_NS
PRICES = {
    "name": "benchmark",
    "currency": "USD",
    "region": "x",
    "commitment": "on_demand",
    "prices": [
        {
            "sku": "p5.48xlarge",
            "resource": "gpu",
            "region": "x",
            "commitment": "on_demand",
            "accelerators": 8,
            "amount": amount,
            "currency": "USD",
            "from": first,
            "to": last,
            "source": "AWS list price",
            "retrieved": "2026-11-23",
        }
        for amount, first, last in (("98.32", "2023-07-26", "2026-03-11"), ("55.04", "2026-03-11", None))
    ],
}
REPORT = """
import json, resource, sys, time
from orchestrator.ledger.calendar import month_bounds
from orchestrator.ledger.ledger import Ledger

url, month = sys.argv[1:]
began = time.perf_counter()
report = Ledger.open(url).report_by(["team", "role", "activity"], *month_bounds(month))
took = time.perf_counter() - began
usage = resource.getrusage(resource.RUSAGE_SELF)
found = {"s": took, "rss": usage.ru_maxrss * 1024, "cpu": usage.ru_utime + usage.ru_stime}
print(json.dumps({**found, "ns": report.ns, "rows": len(report.rows), "amount": str(report.amount)}))
"""
PLAIN = """
import json, sys, time
import duckdb

began = time.perf_counter()
query = f"SELECT role, activity, sum(ns) FROM read_parquet({sys.argv[1:]!r}) GROUP BY ALL"
rows = duckdb.sql(query).fetchall()
print(json.dumps({"s": time.perf_counter() - began, "ns": int(sum(row[2] for row in rows))}))
"""


def write_spool(folder: Path, spans: int) -> int:
    """Write the spool. Returns the number of its events."""
    folder.mkdir(parents=True)
    events = 0
    runs = max(spans // (SPANS_A_LEASE * SLOTS), 1)
    for run in range(runs):
        share = spans * (run + 1) // runs - spans * run // runs
        with (folder / f"run-{run}.jsonl").open("w", encoding="utf-8") as file:
            for line in run_lines(run, share):
                file.write(line)
                events += 1
    return events


def run_lines(run: int, spans: int) -> Iterator[str]:
    """The lines of one run. It starts some hours after the previous run; all runs are within the month."""
    name, start = f"run-{run}", START + (run * 7_919 % 28) * DAY_NS
    yield _line(
        "run_declared", at_ns=start, run_id=name, attempt=1, job="grpo", purpose="final", organisation="lab",
        cost_centre="research", team=f"team-{run % TEAMS}", project="reasoning", pipeline="", stage="",
    )  # fmt: skip
    each = [spans * (slot + 1) // SLOTS - spans * slot // SLOTS for slot in range(SLOTS)]
    for slot in range(SLOTS):
        yield _line(
            "lease_opened", at_ns=start, lease_id=f"{name}/{slot}", run_id=name, attempt=1, resource="gpu",
            sku="p5.48xlarge", node=f"node-{run % 64}", placement_group=name, slot=slot,
        )  # fmt: skip
    for slot in range(SLOTS):
        for number in range(each[slot]):
            step = number // 2
            begin = start + step * STEP_NS
            late = begin + (1_100_000_000 if step % 8 else 900_000_000)
            if number % 2:
                what = (f"learner-{slot}", "learner", "update", late, begin + 1_900_000_000)
            else:
                what = (f"rollout-{slot}", "rollout", "generate", begin, begin + 1_000_000_000)
            yield (
                f'{{"schema":1,"type":"span_recorded","event_id":"{_id(what[4])}","lease_id":"{name}/{slot}",'
                f'"actor":"{what[0]}","role":"{what[1]}","activity":"{what[2]}","start_ns":{what[3]},'
                f'"end_ns":{what[4]},"step":{step},"tokens":4096}}\n'
            )
    end = start + (max(each) // 2 + 1) * STEP_NS
    for slot in range(SLOTS):
        yield _line("lease_closed", at_ns=end, lease_id=f"{name}/{slot}", reason="released")


def _line(kind: str, **fields: object) -> str:
    return json.dumps({"schema": 1, "type": kind, "event_id": _id(START), **fields}) + "\n"


def _id(at_ns: int) -> str:
    """An event id in the format of `training/usage.py`: the time, then random digits."""
    return f"{at_ns:016x}{os.urandom(8).hex()}"


def measure(spans: int, folder: Path) -> dict[str, Any]:
    """Measure one row of the table."""
    events = write_spool(folder / "spool", spans)
    url = f"sqlite:///{folder}/ledger.db"
    ledger = Ledger.open(url, PRICES)
    cpu, began = cpu_seconds(), time.perf_counter()
    taken = ledger.ship(folder / "spool")
    shipped = time.perf_counter()
    ship_cpu = cpu_seconds() - cpu
    parts = ledger.mart_parts()
    booked = time.perf_counter()
    book_cpu = cpu_seconds() - cpu - ship_cpu
    assert taken == events, (taken, events)
    report = _run(REPORT, url, MONTH)
    plain = _run(PLAIN, *map(str, parts))
    assert report["ns"] == plain["ns"], (report, plain)
    return {
        "spans": spans,
        "ingest_per_s": round(events / (booked - began)),
        "report_s": round(report["s"], 3),
        "report_rss_bytes": report["rss"],
        "plain_duckdb_s": round(plain["s"], 3),
        "events": events,
        "ship_s": round(shipped - began, 2),
        "book_s": round(booked - shipped, 2),
        "ship_cpu_s": round(ship_cpu, 2),
        "book_cpu_s": round(book_cpu, 2),
        "report_cpu_s": round(report["cpu"], 2),
        "report_rows": report["rows"],
        "amount": report["amount"],
    }


def cpu_seconds() -> float:
    """CPU time of this process and of its finished children."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in found)


def _run(program: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-c", program, *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--spans", default="1,3,10,30", help="millions, separated by commas")
    parser.add_argument("--folder", type=Path, default=Path("ledger-scale"))
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for millions in arguments.spans.split(","):
        shutil.rmtree(arguments.folder, ignore_errors=True)
        try:
            rows.append(measure(round(float(millions) * MILLION), arguments.folder.resolve()))
        finally:
            shutil.rmtree(arguments.folder, ignore_errors=True)
        print(json.dumps(rows[-1]), file=sys.stderr)
    write_result("ledger_scale", rows)
    if arguments.json:
        print(json.dumps(rows))
        return
    print(describe())
    print(f"{'spans':>12} {'ingest/s':>10} {'report s':>9} {'peak MB':>8} {'plain s':>8}")
    for row in rows:
        memory = row["report_rss_bytes"] / 1e6
        print(
            f"{row['spans']:>12,} {row['ingest_per_s']:>10,} {row['report_s']:>9.2f} {memory:>8.0f} "
            f"{row['plain_duckdb_s']:>8.2f}"
        )


if __name__ == "__main__":
    main()
