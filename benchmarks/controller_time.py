"""Measures the controller's own CPU time per step, without engines.

    python benchmarks/controller_time.py [--json]

The real loop, buffer and pools run between fake stages that take no time (`training/simulation`), on an
asyncio loop with a virtual clock. All CPU time of the process is therefore that of the controller and the
fakes: an upper bound, except for calls to Ray. One factor at a time is increased 1x, 4x and 16x: tokens per
rollout, rollouts per prompt (group size), prompts per step, and portions in which the groups of a request
arrive. CPU time (`time.process_time`) hardly depends on other processes on the machine. The settings
alternate, and the smallest of the repetitions counts.

The controller handles groups, not rollouts or tokens. So the first two must be flat, the third grows with the
number of groups, and the last with the number of portions.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.training.simulation.run import SimulationSettings, Trace, assemble
from orchestrator.training.simulation.stages import Timing
from orchestrator.training.simulation.virtual_time import VirtualClock, run_in_virtual_time

sys.path.insert(0, str(Path(__file__).parent))
from machine import describe, write_result

FACTORS = (1, 4, 16)
REPETITIONS = 5
BASE = SimulationSettings(
    seed=0,
    steps=100,
    max_staleness=1,
    prompts_per_step=64,
    group_size=8,
    rollout_workers=8,
    reward_workers=8,
    checkpoint_every=0,
    timing=Timing(generate=0.0, score=0.0, update=0.0, publish=0.0, tokens_per_rollout=1_000),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table."""

    varied: str
    factor: int
    settings: SimulationSettings


def cases() -> list[Case]:
    tokens, timing = BASE.timing.tokens_per_rollout, BASE.timing
    found: list[Case] = []
    for factor in FACTORS:
        longer = replace(timing, tokens_per_rollout=factor * tokens)
        found.append(Case("tokens per rollout", factor, replace(BASE, timing=longer)))
        found.append(Case("group size", factor, replace(BASE, group_size=factor * BASE.group_size)))
        found.append(
            Case("prompts per step", factor, replace(BASE, prompts_per_step=factor * BASE.prompts_per_step))
        )
        # 16 groups a request, which arrive together, four at a time or one by one
        streamed = replace(BASE, prompts_per_step=128, timing=replace(timing, portions=factor))
        found.append(Case("portions per request", factor, streamed))
    return found


class Silent(Trace):
    """Discards everything, because the work of an observer is not the controller's."""

    def on_step(self, report: object) -> None: ...

    def on_event(self, event: object) -> None: ...

    def on_groups(self, record: object) -> None: ...

    def on_rollouts(self, step: int, rows: object) -> None: ...


def cpu_ms_per_step(settings: SimulationSettings) -> float:
    """CPU milliseconds per step of a run with fake stages."""

    async def main() -> float:
        with tempfile.TemporaryDirectory() as directory:
            clock = VirtualClock()
            simulation = assemble(settings, Path(directory), clock, observer=Silent(clock))
            gc.collect()
            start = time.process_time()
            await simulation.loop.run()
            return (time.process_time() - start) * 1e3 / settings.steps

    return run_in_virtual_time(main())


def measure() -> list[dict[str, str | int | float]]:
    planned = cases()
    best = [float("inf")] * len(planned)
    cpu_ms_per_step(replace(BASE, steps=20))  # warms up imports and caches
    for _ in range(REPETITIONS):
        for index, case in enumerate(planned):
            best[index] = min(best[index], cpu_ms_per_step(case.settings))
    base = {case.varied: value for case, value in zip(planned, best, strict=True) if case.factor == 1}
    return [
        {
            "varied": case.varied,
            "factor": case.factor,
            "prompts_per_step": case.settings.prompts_per_step,
            "group_size": case.settings.group_size,
            "tokens_per_rollout": case.settings.timing.tokens_per_rollout,
            "tokens_per_step": case.settings.prompts_per_step
            * case.settings.group_size
            * case.settings.timing.tokens_per_rollout,
            "cpu_ms_per_step": round(value, 3),
            "times_base": round(value / base[case.varied], 2),
            "cpu_us_per_group": round(value * 1e3 / case.settings.prompts_per_step, 1),
        }
        for case, value in sorted(
            zip(planned, best, strict=True), key=lambda pair: (pair[0].varied, pair[0].factor)
        )
    ]


def print_table(rows: list[dict[str, str | int | float]]) -> None:
    print("The controller's CPU time a step, fake engines included (max_staleness 1, 8 + 8 workers)\n")
    print(
        "| varied | prompts | group size | tokens per rollout | CPU ms per step | to 1x | CPU us per group |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        print(
            f"| {row['varied']} {row['factor']}x | {row['prompts_per_step']} | {row['group_size']}"
            f" | {row['tokens_per_rollout']:,} | {row['cpu_ms_per_step']:.2f} | {row['times_base']:.2f}"
            f" | {row['cpu_us_per_group']:.1f} |"
        )
    print()
    for row in rows:
        if row["factor"] == FACTORS[-1]:
            print(f"{row['factor']}x {row['varied']}: {row['times_base']:.2f} times the CPU time")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    arguments = parser.parse_args()
    rows = measure()
    file = write_result("controller_time", rows)
    if arguments.json:
        print(json.dumps({"machine": describe(), "rows": rows}, indent=2))
    else:
        print_table(rows)
        print(f"\n{file}")


if __name__ == "__main__":
    main()
