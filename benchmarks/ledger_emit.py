"""Measures the cost of one usage event for the actor that emits it: a local append, in
microseconds of CPU and wall time.

    python benchmarks/ledger_emit.py [--json] [--events 50000]

The sink is the one that every actor uses (`training/usage.py`), writing to a file in the working directory.
For comparison, the same bytes are written with `os.write` alone. The budget is 20 microseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from orchestrator.training.usage import Activity, Role, SpanRecorded, SpoolSink, event_to_json, new_event_id

sys.path.insert(0, str(Path(__file__).parent))
from machine import describe, write_result

BUDGET_US = 20.0
ROUNDS = 7


def span(number: int) -> SpanRecorded:
    start = 1_790_000_000_000_000_000 + number * 1_000_000
    role, activity = Role.ROLLOUT, Activity.GENERATE
    return SpanRecorded(
        new_event_id(), "run-1/3", "rollout-3", role, activity, start, start + 900_000, number, 512
    )


def measure(events: int, folder: Path) -> dict[str, float]:
    """Microseconds per event: the best round, and for wall time the 99.9th percentile of single events."""
    made = [span(number) for number in range(events)]
    lines = [(event_to_json(event) + "\n").encode() for event in made]
    emit_cpu: list[float] = []
    write_cpu: list[float] = []
    tails: list[float] = []
    for number in range(ROUNDS):
        sink = SpoolSink(folder / f"emit-{number}.jsonl")
        wall: list[int] = []
        before = time.process_time_ns()
        for event in made:
            began = time.perf_counter_ns()
            sink.emit(event)
            wall.append(time.perf_counter_ns() - began)
        emit_cpu.append((time.process_time_ns() - before) / events / 1000)
        sink.close()
        tails.append(statistics.quantiles(wall, n=1000)[-1] / 1000)
        target = os.open(folder / f"write-{number}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        before = time.process_time_ns()
        for line in lines:
            os.write(target, line)
        write_cpu.append((time.process_time_ns() - before) / events / 1000)
        os.close(target)
    return {
        "emit_cpu_us": min(emit_cpu),
        "bare_write_cpu_us": min(write_cpu),
        "emit_wall_p999_us": min(tails),
        "budget_us": BUDGET_US,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--events", type=int, default=50_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        row = {"events": arguments.events, **measure(arguments.events, Path(folder))}
    write_result("ledger_emit", [row])
    if arguments.json:
        print(json.dumps([row]))
        return
    print(describe())
    print(
        f"one event: {row['emit_cpu_us']:.1f} us of CPU (the bare write {row['bare_write_cpu_us']:.1f} us),"
    )
    print(f"99.9 % within {row['emit_wall_p999_us']:.0f} us of wall time; budget {BUDGET_US:.0f} us of CPU")


if __name__ == "__main__":
    main()
