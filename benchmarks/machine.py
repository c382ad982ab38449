"""Describes the machine of a benchmark and writes its results. The other scripts import it: `from machine
import describe, write_result`.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "transformers", "ray", "deepspeed", "numpy", "duckdb", "mlflow")


def describe() -> dict[str, Any]:
    """The machine, the software, and the load average over a minute at the time of the call."""
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "accelerators": _accelerators(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": _versions(),
        "commit": _commit(),
        "load_average": round(os.getloadavg()[0], 2),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_result(name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write `benchmarks/results/<name>.json`: the rows and the machine. Returns the file."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    document = {"benchmark": name, "machine": describe(), "rows": [dict(row) for row in rows]}
    file.write_text(json.dumps(document, indent=2) + "\n")
    return file


def _processor() -> str:
    """Processors with the same model name may differ, so this includes family, model and
    the relevant vector instructions.
    """
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = [
        flag
        for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
        if flag in fields.get("flags", "").split()
    ]
    name = fields.get("model name", platform.processor())
    return f"{name}, family {fields.get('cpu family')} model {fields.get('model')} ({', '.join(flags)})"


def _accelerators() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    """The commit of this checkout, with `+` if tracked files were changed."""
    here = Path(__file__).parent
    run = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
