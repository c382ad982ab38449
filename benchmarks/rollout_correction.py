"""Does importance sampling correct for an engine whose probabilities differ from the learner's?

    python benchmarks/rollout_correction.py --model DIR [--seeds 0 1 2] [--steps 60] [--json]

The model in DIR (a cold start of the demo) is trained on the demo's task with RLOO, whose gradient takes each
rollout as the learner's own unless a correction is chosen. The engine samples with weights rounded to
integers of 4 bits, as engines with quantised weights do; the learner keeps float32. Four variants: the exact
engine, rounded weights without a correction, with truncated importance sampling (`truncated`), and with
masked importance sampling (`masked`: IcePop). The learning rate is three times that of the demo.

Prints, and writes to benchmarks/results/rollout_correction.json, the held-out accuracy over the steps, which
the same engine samples greedily, the mean difference of the log-probs in the last steps and the largest norm
of a gradient. Draws the accuracy, as the mean over the seeds, into benchmarks/results/rollout_correction.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from async_speedup import HELDOUT, PROGRAM, ROOT
from machine import RESULTS, write_result
from plugin import environment_with_engines

from orchestrator.runs.directory import RunDirectory
from orchestrator.training.telemetry.curve import lines_png

MODULE = "benchmarks.rounded_weights.engines"
ENGINES = {"int4_weights": "int4"}
TRUNCATED = (
    "algorithm.off_policy.correction=truncated_importance_sampling",
    "algorithm.off_policy.truncation=2",
)
MASKED = (
    "algorithm.off_policy.correction=masked_importance_sampling",
    "algorithm.off_policy.minimum=0.5",
    "algorithm.off_policy.truncation=2",
)
VARIANTS: Mapping[str, Sequence[str]] = {
    "exact": ("rollout.engine=hf",),
    "none": ("rollout.engine=int4_weights",),
    "truncated": ("rollout.engine=int4_weights", *TRUNCATED),
    "masked": ("rollout.engine=int4_weights", *MASKED),
}
SETTINGS = (
    "experiment=demo_grpo",
    "algorithm=rloo",
    "learner.schedule=constant",
    "learner.learning_rate=3e-4",
    "evaluation.every=6",
    "tracking=none",
    "checkpoint.every=0",
)
LAST = 5


def run(variant: str, seed: int, options: argparse.Namespace, environment: dict[str, str]) -> dict[str, Any]:
    """Run a job. Returns a row of the result."""
    output = options.output_dir.resolve()
    run_id = f"correction-{variant}-{seed}-{time.time_ns() // 10**6}"
    model = (f"model.path={options.model.resolve()}", "model.family=pretrained")
    words = [
        "run",
        "grpo",
        "--run-id",
        run_id,
        f"seed={seed}",
        f"steps={options.steps}",
        f"output_dir={output}",
    ]
    command = [str(PROGRAM), *words, *SETTINGS, *model, *VARIANTS[variant], *options.overrides]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, env=environment, cwd=ROOT, check=False)
    lines = list(RunDirectory(output / run_id).read_metrics())
    trained = [line.metrics for line in lines if "policy/grad_norm" in line.metrics]
    return {
        "variant": variant,
        "seed": seed,
        "exit_code": done.returncode,
        "heldout": [[line.step, line.metrics[HELDOUT]] for line in lines if HELDOUT in line.metrics],
        "logprob_gap": statistics.fmean(each["offpolicy/logprob_gap_mean"] for each in trained[-LAST:]),
        "largest_grad_norm": max(each["policy/grad_norm"] for each in trained),
    }


def mean_curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Held-out accuracy over the steps, as the mean over the seeds, by variant."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for variant in VARIANTS:
        found: dict[float, list[float]] = {}
        for row in rows:
            if row["variant"] == variant:
                for step, value in row["heldout"]:
                    found.setdefault(step, []).append(value)
        curves[variant] = [(step, statistics.fmean(values)) for step, values in sorted(found.items())]
    return curves


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output-dir", type=Path, default=Path("runs"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        environment = environment_with_engines(Path(folder), MODULE, ENGINES)
        for seed in options.seeds:
            for variant in VARIANTS:
                rows.append(run(variant, seed, options, environment))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    write_result("rollout_correction", rows)
    title = "Held-out accuracy over steps, by correction"
    (RESULTS / "rollout_correction.png").write_bytes(lines_png(mean_curves(rows), title))
    if options.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
