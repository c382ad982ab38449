"""Asynchronous against synchronous training: steps per hour, held-out accuracy, money and what became of the
tokens, by `max_staleness` and `rollout.on_new_weights`.

    python benchmarks/async_speedup.py [--rounds 2] [--model DIR [--seeds 0 1 2] [--settings 0 1 4c]] [--json]

One rollout worker and one learner rank with one thread each, so that two cores can at best double the speed.
The first part needs no model that has learned anything: the lengths of its rollouts are drawn, all equal or
one in ten ten times as long, and generating costs about as much as learning. All settings run one after the
other in each round. The second part trains the model in DIR (a cold start of the demo) on the demo's task to
the same number of steps with each setting and seed, and writes the accuracy over time and money to
benchmarks/results/async_accuracy_*.png. A setting is a `max_staleness`, with `c` for `continue` and `r` for
`recompute`; otherwise rollouts finish with their weights.

Writes benchmarks/results/async_speedup.json and async_accuracy.json. `orchestrator run` starts every run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import RESULTS, write_result
from plugin import environment_with_engines

from orchestrator.runs.directory import RunDirectory
from orchestrator.training.telemetry.curve import lines_png

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = Path(sys.executable).parent / "orchestrator"
HELDOUT = "accuracy/heldout"
WARM_UP = 3
"""Steps that are not timed: buffers grow, and an asynchronous run fills its window."""
ENGINES = {"equal_lengths": "equal", "heavy_tailed_lengths": "heavy_tailed"}
MODES = {"": "finish", "c": "continue", "r": "recompute"}
LAYOUT = (
    "tracking=none",
    "checkpoint.every=0",
    "rollout.workers=1",
    "rollout.threads=1",
    "learner.world_size=1",
    "learner.threads=1",
)
DRAWN = (
    "steps=30",
    "evaluation.every=0",
    "algorithm=grpo_token",
    "rollout.prompts_per_step=16",
    "rollout.group_size=8",
    "rollout.max_new_tokens=240",
    "rollout.max_batch_rows=64",
    "rollout.stream_seconds=0.1",
    "model.context=320",
    r"reward.components={benchmarks.drawn_lengths.reward\:by_digest: 1.0}",
)


@dataclass(frozen=True, slots=True)
class Setting:
    """How asynchronous a run is."""

    max_staleness: int
    on_new_weights: str

    @classmethod
    def parse(cls, text: str) -> Setting:
        """From `4` or `4c`."""
        digits = text.rstrip("cr")
        return cls(int(digits), MODES[text[len(digits) :]])

    @property
    def name(self) -> str:
        return f"S = {self.max_staleness}" + (f", {self.on_new_weights}" if self.max_staleness else "")

    def overrides(self) -> list[str]:
        return [f"max_staleness={self.max_staleness}", f"rollout.on_new_weights={self.on_new_weights}"]


def run(
    name: str,
    setting: Setting,
    seed: int,
    overrides: Sequence[str],
    output_dir: Path,
    environment: dict[str, str],
) -> tuple[dict[str, Any], RunDirectory]:
    """Run a job. Returns a row of the table, and the run's directory."""
    run_id = (
        f"async-{name}-{setting.max_staleness}{setting.on_new_weights[0]}-{seed}-{time.time_ns() // 10**6}"
    )
    command = [str(PROGRAM), "run", "grpo", "--run-id", run_id, f"seed={seed}", f"output_dir={output_dir}"]
    subprocess.run(
        [*command, *LAYOUT, *setting.overrides(), *overrides],
        check=True,
        stdout=subprocess.DEVNULL,
        env=environment,
        cwd=ROOT,
    )
    directory = RunDirectory(output_dir / run_id)
    heldout = [line.metrics[HELDOUT] for line in directory.read_metrics() if HELDOUT in line.metrics]
    where = ["--output-dir", str(output_dir), "--json"]
    cost = answer(["cost", "report", run_id, *where], environment)
    audit = answer(["audit", run_id, *where], environment)
    if audit["violations"]:
        raise SystemExit(f"{run_id}: {audit['violations']}")
    return {
        "workload": name,
        "max_staleness": setting.max_staleness,
        "on_new_weights": setting.on_new_weights,
        "seed": seed,
        "steps_per_hour": round(steps_per_hour(directory)),
        "heldout": heldout[-1] if heldout else None,
        "amount": cost["amount"],
        "tokens": audit["tokens"],
    }, directory


def answer(command: Sequence[str], environment: dict[str, str]) -> dict[str, Any]:
    """The JSON that a command prints."""
    done = subprocess.run(
        [str(PROGRAM), *command], check=True, capture_output=True, text=True, env=environment
    )
    return json.loads(done.stdout)


def steps_per_hour(directory: RunDirectory) -> float:
    """Speed after the warm-up, without the time of evaluations."""
    lines = [line for line in directory.read_metrics() if line.step > 0]
    seconds = sum(
        line.metrics["time/step"] - line.metrics.get("time/evaluate", 0.0) for line in lines[WARM_UP:]
    )
    return 3600 * len(lines[WARM_UP:]) / seconds


def drawn_lengths(rounds: int, output_dir: Path) -> list[dict[str, Any]]:
    """The first part. Each row has the ratio to the synchronous run of its round."""
    workloads = {
        "equal_lengths": ["0", "1", "4", "4c"],
        "heavy_tailed_lengths": ["0", "1", "4", "4c", "4r"],
    }
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        environment = environment_with_engines(Path(folder), "benchmarks.drawn_lengths.engines", ENGINES)
        for seed in range(rounds):
            for engine, settings in workloads.items():
                base = 0.0
                for setting in map(Setting.parse, settings):
                    row, _ = run(
                        engine, setting, seed, [*DRAWN, f"rollout.engine={engine}"], output_dir, environment
                    )
                    base = base or row["steps_per_hour"]
                    rows.append(row | {"speedup": round(row["steps_per_hour"] / base, 3)})
                    print_row(rows[-1])
    return rows


def learning(
    model: Path, seeds: Sequence[int], settings: Sequence[Setting], output_dir: Path
) -> tuple[list[dict[str, Any]], dict[str, dict[str, list[tuple[float, float]]]]]:
    """The second part: rows, and for the first seed the accuracy over seconds and money by setting."""
    overrides = ["experiment=demo_grpo", f"model.path={model}", "model.family=pretrained", "steps=48"]
    rows: list[dict[str, Any]] = []
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {"seconds": {}, "money": {}}
    for seed in seeds:
        for setting in settings:
            row, directory = run("demo", setting, seed, overrides, output_dir, dict(os.environ))
            rows.append(row)
            print_row(row)
            if seed == seeds[0]:
                for axis, points in accuracy_over(directory).items():
                    curves[axis][setting.name] = points
    return rows, curves


def accuracy_over(directory: RunDirectory) -> dict[str, list[tuple[float, float]]]:
    """Held-out accuracy over the seconds that training took so far, and over the money."""
    seconds, points = 0.0, {"seconds": list[tuple[float, float]](), "money": list[tuple[float, float]]()}
    for line in directory.read_metrics():
        seconds += line.metrics.get("time/step", 0.0) - line.metrics.get("time/evaluate", 0.0)
        if HELDOUT in line.metrics:
            points["seconds"].append((seconds, line.metrics[HELDOUT]))
            if "cost/usd" in line.metrics:
                points["money"].append((line.metrics["cost/usd"], line.metrics[HELDOUT]))
    return points


def print_row(row: dict[str, Any]) -> None:
    print("  ".join(f"{key} {value}" for key, value in row.items()), file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", default=["0", "1", "2", "4", "4c", "8c"])
    parser.add_argument("--output-dir", type=Path, default=Path("runs"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    output_dir = options.output_dir.resolve()
    rows = drawn_lengths(options.rounds, output_dir)
    if rows:
        write_result("async_speedup", rows)
    if options.model:
        settings = [Setting.parse(text) for text in options.settings]
        learned, curves = learning(options.model.resolve(), options.seeds, settings, output_dir)
        rows += learned
        write_result("async_accuracy", learned)
        titles = {
            "seconds": "Held-out accuracy over seconds of training",
            "money": "Held-out accuracy over USD",
        }
        for axis, title in titles.items():
            (RESULTS / f"async_accuracy_{axis}.png").write_bytes(lines_png(curves[axis], title))
    if options.json:
        print(json.dumps(rows, indent=2))
    for workload in {row["workload"] for row in rows if "speedup" in row}:
        for setting in ("finish", "continue", "recompute"):
            found = [row for row in rows if (row["workload"], row["on_new_weights"]) == (workload, setting)]
            for staleness in sorted({row["max_staleness"] for row in found}):
                ratios = [row["speedup"] for row in found if row["max_staleness"] == staleness]
                print(f"{workload} S={staleness} {setting}: {statistics.mean(ratios):.2f} x", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
