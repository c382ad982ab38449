"""Verifies that the demo learns with every seed: runs it from scratch for each seed and draws
held-out accuracy over the steps.

    python benchmarks/learning_curve.py [--seeds 0 1 2] [--expert-parallel-sizes 1] [--json] [OVERRIDE ...]

With several expert parallel sizes of the GRPO stage (its two ranks hold all experts, or half of them each),
each seed runs with each of them. Writes benchmarks/results/learning_curve.json and .png, or
learning_curve_expert_parallel.*. Everything goes through `orchestrator run r1_demo`, so Ray, DeepSpeed,
MLflow and the ledger are included in the times.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import RESULTS, write_result

from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.metric_intervals import band_of
from orchestrator.training.telemetry.curve import Series, seeds_png

TARGET = 0.85
HELDOUT, REFLECTION = "accuracy/heldout", "rollout/reflection_fraction"
HELDOUT_N = "accuracy/heldout_n"
PROGRAM = Path(sys.executable).parent / "orchestrator"


def run_seed(seed: int, experts: int, output_dir: Path, overrides: list[str]) -> dict[str, Any]:
    """Run the whole demo with an expert parallel size of the GRPO stage. Returns a row of the table."""
    run_id = f"learning-curve-{seed}-{int(time.time())}"
    overrides = [f"stages.grpo.learner.expert_parallel_size={experts}", *overrides]
    started = time.monotonic()
    command = [str(PROGRAM), "run", "r1_demo", "--run-id", run_id, f"seed={seed}", f"output_dir={output_dir}"]
    subprocess.run([*command, *overrides], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    cold_start, grpo = (RunDirectory(output_dir / f"{run_id}-{stage}") for stage in ("cold_start", "grpo"))
    heldout, reflection = series(grpo, HELDOUT), series(grpo, REFLECTION)
    bands = band_of(HELDOUT, {HELDOUT: heldout, HELDOUT_N: series(grpo, HELDOUT_N)})
    overhead = [value for _, value in series(grpo, "time/orchestration_fraction")]
    report = json.loads(
        subprocess.run(
            [str(PROGRAM), "cost", "report", run_id, "--output-dir", str(output_dir), "--json"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )
    return {
        "seed": seed,
        "expert_parallel_size": experts,
        "run_id": run_id,
        "seconds": round(seconds, 1),
        "after_cold_start": heldout[0][1],
        "after_cold_start_interval": bounds(bands[0]),
        "after_grpo": heldout[-1][1],
        "after_grpo_interval": bounds(bands[-1]),
        "self_checks_first_step": reflection[0][1],
        "self_checks_last_step": reflection[-1][1],
        "grpo_steps": heldout[-1][0],
        "orchestration_fraction_median": sorted(overhead)[len(overhead) // 2],
        "accelerator_hours": report["accelerator_hours"],
        "amount": f"{report['amount']} {report['currency']}",
        "cold_start": series(cold_start, HELDOUT),
        "heldout": heldout,
        "heldout_band": bands,
        "self_checks": reflection,
    }


def series(run: RunDirectory, name: str) -> Series:
    """Read (step, value) of one metric."""
    return [(line.step, line.metrics[name]) for line in run.read_metrics() if name in line.metrics]


def bounds(band: tuple[int, float, float]) -> str:
    """Format the 95 % Wilson interval of one evaluation: `0.9783 to 0.9993`."""
    return f"{band[1]:.4f} to {band[2]:.4f}"


def main() -> int:
    """Run the seeds one after another. The exit code is 1 if a seed missed the target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--expert-parallel-sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--output-dir", type=Path, default=Path("runs"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    output_dir, sizes = options.output_dir.resolve(), options.expert_parallel_sizes
    rows = [run_seed(seed, size, output_dir, options.overrides) for seed in options.seeds for size in sizes]
    name = "learning_curve" if sizes == [1] else "learning_curve_expert_parallel"
    write_result(name, rows)
    curves = {
        f"seed {row['seed']}" + ("" if sizes == [1] else f", EP {row['expert_parallel_size']}"): row[
            "heldout"
        ]
        for row in rows
    }
    bands = {seed: row["heldout_band"] for seed, row in zip(curves, rows, strict=True)}
    picture = seeds_png(curves, "Held-out accuracy under GRPO, 95 % intervals", TARGET, bands)
    (RESULTS / f"{name}.png").write_bytes(picture)
    shown = [{key: value for key, value in row.items() if not isinstance(value, list)} for row in rows]
    if options.json:
        print(json.dumps(shown, indent=2))
    else:
        for row in shown:
            print("  ".join(f"{key} {value}" for key, value in row.items()))
    return 0 if all(row["after_cold_start"] < 0.5 and row["after_grpo"] >= TARGET for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
