"""A long asynchronous run with a fault every two minutes: do memory, file descriptors, shared memory and Ray
objects stay flat?

    python benchmarks/endurance.py [--minutes 120] [--fault-seconds 120] [--plot] [--json] [OVERRIDE ...]

Starts a Ray head (`ray start --head`), runs `orchestrator run grpo --address ...` there at `max_staleness: 4`
with `rollout.on_new_weights=continue`, and injects one fault after the other: a killed rollout worker, a
stopped one, one that runs at a tenth of its speed, a killed reward worker and a killed learner rank. Every 20
seconds it notes what the processes hold. At the end the run is stopped by SIGTERM and audited.

Prints the median of the first and of the last quarter of the time, and the slope per hour in between. The
first ten minutes are left out, because buffers grow then. With --plot the samples are drawn into
benchmarks/results/endurance.png; the figures are in benchmarks/results/endurance.json.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from machine import RESULTS, write_result

from orchestrator.runs.directory import RunDirectory

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = Path(sys.executable).parent
SAMPLE_SECONDS = 20.0
WARM_UP_SECONDS = 600.0
SLOW_SECONDS = 20.0
FIRST_FAULT_STEP = 5
STOP_SECONDS = 300.0
SETTINGS = (
    "experiment=demo_grpo",
    "algorithm=grpo_tis",
    "max_staleness=4",
    "rollout.on_new_weights=continue",
    "steps=1000000",
    "learner.schedule=constant",
    "learner.world_size=1",
    "rollout.prompts_per_step=8",
    "rollout.group_size=4",
    "evaluation.every=200",
    "evaluation.prompts=64",
    "checkpoint.every=50",
    "tracking=none",
    "cluster.call_timeout_seconds=60",
    # Each fault is tolerated; how many there are depends on the time.
    "rollout.max_restarts=1000",
    "rollout.max_data_losses=1000",
    "reward.max_restarts=1000",
    "learner.max_restarts=1000",
)
QUANTITIES = {
    "driver_mb": "memory of the driver, MB",
    "actors_mb": "memory of all actors, MB",
    "driver_files": "open files of the driver",
    "actor_files": "open files per actor",
    "shared_mb": "/dev/shm, MB",
    "ray_objects": "objects in Ray's store",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """What the processes of the run hold at one moment."""

    seconds: float
    steps: int
    driver_mb: float
    actors_mb: float
    driver_files: int
    actor_files: float
    shared_mb: float
    ray_objects: int


class Cluster:
    """A Ray head on this machine, with its own port and folder."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))
        words = (
            f"start --head --port {port} --num-cpus 8 --object-store-memory 300000000 --disable-usage-stats"
        )
        words += f" --temp-dir {self._folder} --dashboard-port {port + 1}"
        subprocess.run([str(PROGRAMS / "ray"), *words.split()], check=True, stdout=subprocess.DEVNULL)

    def workers(self, kind: str) -> list[psutil.Process]:
        """The processes of the actors whose class is `kind`."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter(["cmdline"]):
            with contextlib.suppress(psutil.Error):
                words = process.info["cmdline"] or [""]
                if words[0].startswith(f"ray::{kind}") and self._is_ours(process):
                    found.append(process)
        return found

    def objects(self) -> int:
        """The number of objects in the object store."""
        words = ["memory", "--stats-only", "--address", self.address]
        environment = os.environ | {"RAY_AUTH_MODE": "token"}
        done = subprocess.run(
            [str(PROGRAMS / "ray"), *words], capture_output=True, text=True, env=environment, check=True
        )
        match = re.search(r"(\d+) objects", done.stdout)
        assert match is not None, done.stdout
        return int(match[1])

    def stop(self) -> None:
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                process.terminate()
        psutil.wait_procs(list(self._processes()), timeout=20)
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter(["cmdline"]):
            if any(str(self._folder) in word for word in process.info["cmdline"] or ()):
                yield process

    def _is_ours(self, process: psutil.Process) -> bool:
        return any(str(self._folder) in " ".join(each.cmdline()) for each in process.parents()[:2])


def killed(process: psutil.Process) -> None:
    process.kill()


def stopped(process: psutil.Process) -> None:
    process.suspend()


def slowed(process: psutil.Process) -> None:
    """Let it run a tenth of the time for a while."""
    for _ in range(round(SLOW_SECONDS)):
        process.suspend()
        time.sleep(0.9)
        process.resume()
        time.sleep(0.1)


FAULTS: tuple[tuple[str, Callable[[psutil.Process], None]], ...] = (
    ("RolloutActor", killed),
    ("RolloutActor", slowed),
    ("RewardActor", killed),
    ("RolloutActor", stopped),
    ("LearnerActor", killed),
)


def observe(driver: psutil.Process, cluster: Cluster, run: RunDirectory, began: float) -> Sample | None:
    """Take a sample; None if a process ended meanwhile."""
    try:
        actors = [each for kind in ("Rollout", "Reward", "Learner") for each in cluster.workers(kind)]
        used = shutil.disk_usage("/dev/shm").used
        return Sample(
            seconds=round(time.monotonic() - began, 1),
            steps=sum(1 for _ in run.read_metrics()) if run.path.exists() else 0,
            driver_mb=round(driver.memory_info().rss / 1e6, 1),
            actors_mb=round(sum(each.memory_info().rss for each in actors) / 1e6, 1),
            driver_files=driver.num_fds(),
            actor_files=round(statistics.fmean([each.num_fds() for each in actors] or [0]), 1),
            shared_mb=round(used / 1e6, 1),
            ray_objects=cluster.objects(),
        )
    except psutil.Error:
        return None


def endure(options: argparse.Namespace) -> tuple[list[Sample], list[dict[str, Any]], dict[str, Any]]:
    """The samples, the faults and the audit of the run."""
    cluster = Cluster(options.port)
    output = options.output_dir.resolve()
    run_id = f"endurance-{time.strftime('%Y%m%d-%H%M%S')}"
    run = RunDirectory(output / run_id)
    words = ["run", "grpo", "--run-id", run_id, "--address", cluster.address, f"output_dir={output}"]
    command = [str(PROGRAMS / "orchestrator"), *words, *SETTINGS, *options.overrides]
    log = output / f"{run_id}.log"
    output.mkdir(parents=True, exist_ok=True)
    samples: list[Sample] = []
    faults: list[dict[str, Any]] = []
    try:
        with log.open("w") as file:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=ROOT)
            began, driver = time.monotonic(), psutil.Process(process.pid)
            upcoming = itertools.cycle(FAULTS)
            next_fault = math.inf
            while time.monotonic() < began + 60 * options.minutes:
                time.sleep(SAMPLE_SECONDS)
                if process.poll() is not None:
                    raise SystemExit(f"the run ended with exit code {process.returncode}: see {log}")
                if sample := observe(driver, cluster, run, began):
                    samples.append(sample)
                    print(json.dumps(asdict(sample)), file=sys.stderr, flush=True)
                    if sample.steps >= FIRST_FAULT_STEP and next_fault == math.inf:
                        next_fault = time.monotonic()
                if time.monotonic() > next_fault:
                    faults += inject(next(upcoming), cluster, began)
                    next_fault += options.fault_seconds
            process.send_signal(signal.SIGTERM)
            code = process.wait(STOP_SECONDS)
        where = ["--output-dir", str(output), "--json"]
        done = subprocess.run(
            [str(PROGRAMS / "orchestrator"), "audit", run_id, *where],
            capture_output=True,
            text=True,
            check=False,
        )
        return samples, faults, {"exit_code": code, "audit": json.loads(done.stdout)}
    finally:
        cluster.stop()


def inject(
    fault: tuple[str, Callable[[psutil.Process], None]], cluster: Cluster, began: float
) -> list[dict[str, Any]]:
    """Inject a fault into the newest process of its kind. Returns what was done."""
    kind, action = fault
    processes = sorted(cluster.workers(kind), key=lambda each: each.create_time())
    for process in processes[-1:]:
        with contextlib.suppress(psutil.Error):
            action(process)
    found = [{"seconds": round(time.monotonic() - began), "kind": kind, "fault": action.__name__}]
    found = found if processes else []
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def trend(samples: Sequence[Sample], name: str) -> dict[str, Any]:
    """How a quantity changed: medians of the first and the last quarter, and the slope of a line."""
    kept = [sample for sample in samples if sample.seconds > WARM_UP_SECONDS] or list(samples)
    values = [float(getattr(sample, name)) for sample in kept]
    quarter = max(1, len(values) // 4)
    slope = 0.0
    if len(values) > 1:
        line = statistics.linear_regression([sample.seconds / 3600 for sample in kept], values)
        slope = line.slope
    return {
        "quantity": name,
        "first_quarter": statistics.median(values[:quarter]),
        "last_quarter": statistics.median(values[-quarter:]),
        "slope_per_hour": round(slope, 2),
    }


def plot(samples: Sequence[Sample], faults: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw every quantity over time; a grey line is a fault."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), dpi=150, layout="constrained")
    grid = figure.subplots(3, 2, sharex=True)
    minutes = [sample.seconds / 60 for sample in samples]
    for axes, (name, title) in zip(grid.flat, QUANTITIES.items(), strict=True):
        for fault in faults:
            axes.axvline(fault["seconds"] / 60, color="#d0d7de", linewidth=0.8)
        axes.plot(minutes, [getattr(sample, name) for sample in samples], color="#0f7b55", linewidth=2)
        axes.set_title(title, loc="left", fontsize=15)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=13)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("minutes", fontsize=14)
    figure.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--fault-seconds", type=float, default=120.0)
    parser.add_argument("--port", type=int, default=6391)
    parser.add_argument("--output-dir", type=Path, default=Path("runs"))
    parser.add_argument("--plot", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    options = parser.parse_args()
    samples, faults, ended = endure(options)
    rows: list[dict[str, Any]] = [trend(samples, name) for name in QUANTITIES]
    audit = ended["audit"]
    rows.append(
        {
            "minutes": options.minutes,
            "steps": samples[-1].steps,
            "faults": len(faults),
            "exit_code": ended["exit_code"],
            "violations": audit["violations"],
            "tokens": audit["tokens"],
        }
    )
    write_result("endurance", [*rows, *faults, *(asdict(sample) for sample in samples)])
    if options.plot:
        plot(samples, faults, RESULTS / "endurance.png")
    for row in rows:
        print(json.dumps(row))
    return 0 if not audit["violations"] and ended["exit_code"] == 4 else 1


if __name__ == "__main__":
    sys.exit(main())
