"""Measures what one GPU can prove in six minutes, without Ray.

    python benchmarks/gpu_check.py [--json] [--seconds 360] [--parts sampling_dense ...] [--output FILE]

Needs Python 3.12, torch for CUDA, transformers, and the 8 MB of benchmarks/gpu-requirements.txt. The project
does not have to be installed. On a machine without a network, bring the wheels along:

    pip download --no-deps --find-links requirements/wheels --dest WHEELS -r benchmarks/gpu-requirements.txt
    pip install --no-deps --no-index --find-links WHEELS -r benchmarks/gpu-requirements.txt   # on the machine

Every part is a process of its own with a time budget. A part that fails, or is not finished in time, is
reported as failed and does not affect the others; the exit code is then 1. The models have about a billion
random weights in bfloat16, one of them dense and one a mixture of experts.

- device: measured memory bandwidth and matmul speed, beside those of the datasheet if the device is known.
- sampling: the `hf` engine against `generate`, and the share of the limit that the memory bandwidth sets; the
  difference between the log-probs of the engine and those that the learner computes for the same tokens.
- learning: updates of the learner on DeepSpeed (one rank, ZeRO 1): model FLOPs utilisation, and peak memory
  against `orchestrator plan`. The same work without DeepSpeed is measured too.
- publish: bytes per second of a weight publish from the GPU's memory, and of loading it back.
- tests: the unit and integration tests that are marked `gpu`.

On a machine without a GPU it says so, measures nothing and exits with 0. `--device cpu --size tiny` runs all
parts on a CPU, without budgets, to try the script itself; its numbers mean nothing and are not written.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import describe, write_result

ROOT = Path(__file__).parent.parent
PREFIX = "measurement "
GPU_TESTS = ("tests/unit/training/rollouts/test_hf_engine.py", "tests/integration/test_learner_gpu.py")
NO_GPU = "no GPU was found: nothing was measured"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """A process with its time budget, and the measurements that it prints."""

    name: str
    seconds: float
    measurements: tuple[str, ...]


PARTS = (
    Part("device", 30, ("limits",)),
    Part("sampling_dense", 70, ("speed", "logprob_gap")),
    Part("sampling_moe", 70, ("speed", "logprob_gap")),
    Part("learning_dense", 60, ("plain_update", "learner_update")),
    Part("learning_moe", 60, ("plain_update", "learner_update")),
    Part("publish", 30, ("shared_memory",)),
    Part("tests", 90, ("pytest",)),
)


def run_parts(parts: Sequence[Part], device: str, size: str, seconds: float) -> Iterator[Row]:
    """Yield the rows of all parts. A part may take its budget, or what remains of `seconds` if that is less.
    There is no limit on a CPU.
    """
    end = time.monotonic() + seconds
    for part in parts:
        budget = math.inf if device == "cpu" else min(part.seconds, end - time.monotonic())
        if budget <= 0:
            yield from (
                _row(part, name, "not run", f"the {seconds:g} s were over") for name in part.measurements
            )
        elif part.name == "tests":
            yield run_tests(part, device, budget)
        else:
            yield from run_part(part, device, size, budget)


def run_part(part: Part, device: str, size: str, budget: float) -> Iterator[Row]:
    """The rows of a part, in which every measurement has one."""
    module = ("-m", "benchmarks.gpu_parts", part.name, "--device", device, "--size", size)
    ended = run_process(module, budget)
    lines = [line for line in ended.output.splitlines() if line.startswith(PREFIX)]
    rows = {row["measurement"]: row for row in map(json.loads, (line.removeprefix(PREFIX) for line in lines))}
    for name in part.measurements:
        yield rows.get(name) or _row(part, name, "failed", ended.reason)


def run_tests(part: Part, device: str, budget: float) -> Row:
    """Run the tests marked `gpu`. On a CPU they are only collected."""
    options = ["-q", "-m", "gpu", "-W", "default", "--noconftest", "-p", "no:cacheprovider"]
    options += ["--collect-only"] if device == "cpu" else []
    ended = run_process(("-m", "pytest", *options, *GPU_TESTS), budget)
    summary = ended.output.strip().splitlines()[-1:] or [""]
    counts = {
        word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|error|skipped)", summary[0])
    }
    if ended.code != 0:
        reason = ended.reason if ended.code is None else f"{summary[0]}\n{ended.output[-2000:]}"
        return _row(part, "pytest", "failed", reason, ended.seconds, counts)
    return _row(part, "pytest", "measured", "", ended.seconds, counts or {"summary": summary[0]})


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that ended. `code` is None if it was stopped at the end of its budget."""

    code: int | None
    output: str
    errors: str
    seconds: float

    @property
    def reason(self) -> str:
        """Why a measurement is missing."""
        if self.code is None:
            return f"not finished after {self.seconds:.0f} s"
        last = self.errors.strip().splitlines()[-1:] or ["no error output"]
        return f"the process ended with exit code {self.code}: {last[0]}"


def run_process(arguments: Sequence[str], budget: float) -> Ended:
    """Run Python with `arguments` from the repository's root, for at most `budget` seconds."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
        try:
            code = process.wait(None if math.isinf(budget) else budget)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # also the ranks that a test has started
            process.wait()
            code = None
        output.seek(0)
        errors.seek(0)
        return Ended(code, output.read(), errors.read(), time.monotonic() - start)


def _row(
    part: Part, name: str, status: str, reason: str, seconds: float = 0.0, values: Row | None = None
) -> Row:
    row = {"part": part.name, "measurement": name, "status": status, "seconds": round(seconds, 2)}
    return {**row, "values": values or {}, "reason": reason}


def show(row: Row) -> None:
    """Print a measurement on one line, with numbers of four digits."""
    values = (
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in row["values"].items()
    )
    reason = row["reason"].partition("\n")[0]
    text = ", ".join(values) if row["status"] == "measured" else f"{row['status']}: {reason}"
    print(f"{row['part']}, {row['measurement']} ({row['seconds']:.0f} s): {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [part.name for part in PARTS]
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout instead of lines")
    parser.add_argument("--seconds", type=float, default=360.0, help="limit for all parts together")
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--output", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        nothing = json.dumps({"machine": describe(), "message": NO_GPU, "rows": []})
        print(nothing if arguments.json else NO_GPU)
        return 0
    parts = [part for part in PARTS if part.name in arguments.parts]
    rows: list[Row] = []
    for row in run_parts(parts, arguments.device, arguments.size, arguments.seconds):
        rows.append(row)
        if not arguments.json:
            show(row)
    if arguments.device == "cuda" and arguments.size == "full" and len(parts) == len(PARTS):
        file = write_result("gpu_check", rows)
        if arguments.output is not None:
            shutil.copy(file, arguments.output)
    if arguments.json:
        print(json.dumps({"machine": describe(), "rows": rows}, indent=2))
    return 0 if all(row["status"] == "measured" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
