"""`orchestrator doctor`: what a run needs of this machine, and how to get what is missing. Imports none."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from orchestrator.cli.output import print_json, print_table

GIB = 1 << 30
DISK_BYTES = 5 * GIB
SHARED_MEMORY_BYTES = GIB // 2
PACKAGES = ("torch", "ray", "deepspeed", "transformers", "mlflow-skinny", "reasoning-gym")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing a run needs: what was found and, where that is not enough, what to do."""

    check: str
    ok: bool
    detail: str
    remedy: str = ""


def report(output_dir: Path, as_json: bool) -> int:
    """Print all checks; 0 if all are well, 1 otherwise."""
    checks = run_checks(output_dir)
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        rows = [
            [check.check, "ok" if check.ok else "MISSING", check.detail, check.remedy] for check in checks
        ]
        print_table(("check", "", "found", "what to do"), rows, "nothing to check")
    return 0 if all(check.ok for check in checks) else 1


def run_checks(output_dir: Path) -> list[Check]:
    """Everything that is checked, in the order in which it would be missed."""
    return [
        _python(),
        *(_package(name) for name in PACKAGES),
        _cpus(),
        _space(
            "shared memory",
            Path("/dev/shm"),
            SHARED_MEMORY_BYTES,
            "docker run --shm-size=2g, or remount /dev/shm",
        ),
        _space(
            "disk", _existing(output_dir), DISK_BYTES, "free some space, or set output_dir to another disk"
        ),
        _writable(output_dir),
        _gpu(shutil.which),
    ]


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check(
        "python",
        sys.version_info >= (3, 11),
        found,
        "install Python 3.11 or newer" if sys.version_info < (3, 11) else "",
    )


def _package(name: str) -> Check:
    try:
        return Check(name, True, version(name))
    except PackageNotFoundError:
        return Check(name, False, "not installed", f"pip install {name}")


def _cpus() -> Check:
    count = len(os.sched_getaffinity(0))
    remedy = "" if count >= 2 else "two or more CPUs let rollout workers and learner ranks run side by side"
    return Check("cpus", count >= 1, f"{count} usable", remedy)


def _space(name: str, path: Path, needed: int, remedy: str) -> Check:
    if not path.exists():
        return Check(name, False, f"{path} is missing", remedy)
    free = shutil.disk_usage(path).free
    ok = free >= needed
    return Check(
        name,
        ok,
        f"{free / GIB:.1f} GiB free in {path}",
        "" if ok else f"{remedy}; {needed / GIB:.1f} GiB are needed",
    )


def _writable(output_dir: Path) -> Check:
    path = _existing(output_dir)
    ok = os.access(path, os.W_OK | os.X_OK)
    return Check(
        "output directory",
        ok,
        str(output_dir),
        "" if ok else f"{path} can't be written: set ORCHESTRATOR_OUTPUT_DIR",
    )


def _gpu(which: Callable[[str], str | None]) -> Check:
    devices = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    if devices:
        ok = which("nvidia-smi") is not None
        remedy = "" if ok else "install the NVIDIA driver's tools (nvidia-smi)"
        return Check("gpu", ok, f"{len(devices)} NVIDIA", remedy)
    return Check("gpu", True, "none: runs use CPU slots (cluster.resource cpu)")


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path
