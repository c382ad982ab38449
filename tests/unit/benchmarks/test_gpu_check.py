"""benchmarks/gpu_check.py: every part runs on a CPU at a tiny size and without Ray, a part that fails does
not hide the others, and without a GPU nothing is measured.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks.gpu_parts.__main__ import PREFIX, measured, parts
from benchmarks.gpu_parts.models import SIZES
from orchestrator.capacity.parameters import active_parameters, total_parameters

ROOT = Path(__file__).parents[3]
BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results" / "gpu_check.json"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu_check")


@pytest.fixture
def without_ray(tmp_path: Path) -> Run:
    """Run Python where importing Ray fails, and assert that nothing tried to."""
    imported = tmp_path / "imported"
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text(
        f"open({str(imported)!r}, 'w').close()\nraise ImportError('ray is not installed')\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
        "CUDA_VISIBLE_DEVICES": "",
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        ended = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert not imported.exists()
        return ended

    return run


@pytest.mark.slow
def test_every_measurement_runs_on_a_cpu_without_ray(without_ray: Run, gpu_check: ModuleType) -> None:
    names = [part.name for part in gpu_check.PARTS if part.name != "tests"]
    ended = without_ray("-m", "benchmarks.gpu_parts", *names, "--device", "cpu", "--size", "tiny")
    assert ended.returncode == 0, ended.stderr
    lines = [line.removeprefix(PREFIX) for line in ended.stdout.splitlines() if line.startswith(PREFIX)]
    rows: dict[tuple[str, str], Any] = {
        (row["part"], row["measurement"]): row for row in map(json.loads, lines)
    }
    assert {key: row["reason"] for key, row in rows.items() if row["status"] != "measured"} == {}
    assert list(rows) == [
        (part.name, name) for part in gpu_check.PARTS if part.name != "tests" for name in part.measurements
    ]
    for family in ("dense", "moe"):
        speed = rows[f"sampling_{family}", "speed"]["values"]
        assert speed["speedup"] == pytest.approx(
            speed["engine_tokens_per_s"] / speed["generate_tokens_per_s"]
        )
        gap = rows[f"sampling_{family}", "logprob_gap"]["values"]
        assert 0 < gap["tokens"] <= SIZES["tiny"].rows * SIZES["tiny"].new_tokens
        assert 0 <= gap["mean"] <= gap["max"] < 0.1
        learned = rows[f"learning_{family}", "learner_update"]["values"]
        assert learned["tokens"] == 2 * 2 * (6 + 8)
        assert learned["mfu"] > 0
        assert learned["planned_memory_bytes"] > 0
        assert learned["peak_memory_bytes"] is None
    published = rows["publish", "shared_memory"]["values"]
    assert published["bytes"] == 2 * total_parameters(SIZES["tiny"].shape("dense")).total


@pytest.mark.slow
def test_the_script_reports_its_parts_and_writes_nothing_for_a_cpu(without_ray: Run) -> None:
    before = RESULTS.read_bytes() if RESULTS.exists() else None
    ended = without_ray(
        str(BENCHMARKS / "gpu_check.py"), "--json", "--device", "cpu", "--size", "tiny",
        "--parts", "publish", "tests",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    document = json.loads(ended.stdout)
    assert [(row["part"], row["status"]) for row in document["rows"]] == [
        ("publish", "measured"), ("tests", "measured"),
    ]  # fmt: skip
    assert "tests collected" in document["rows"][1]["values"]["summary"]
    assert document["machine"]["accelerators"] == []
    assert (RESULTS.read_bytes() if RESULTS.exists() else None) == before


@pytest.mark.slow
def test_without_a_gpu_nothing_is_measured(without_ray: Run) -> None:
    ended = without_ray(str(BENCHMARKS / "gpu_check.py"), "--json")
    assert ended.returncode == 0
    assert json.loads(ended.stdout)["message"] == "no GPU was found: nothing was measured"
    assert json.loads(ended.stdout)["rows"] == []


def test_the_script_expects_the_measurements_that_the_parts_have(gpu_check: ModuleType) -> None:
    known = parts(SIZES["tiny"], torch.device("cpu"))
    expected = {part.name: part.measurements for part in gpu_check.PARTS if part.name != "tests"}
    assert {name: tuple(measures) for name, measures in known.items()} == expected


def test_the_full_models_have_about_a_billion_parameters() -> None:
    dense, moe = (total_parameters(SIZES["full"].shape(family)).total for family in ("dense", "moe"))
    assert dense == pytest.approx(1.04e9, rel=0.01)
    assert moe == pytest.approx(0.92e9, rel=0.01)
    assert active_parameters(SIZES["full"].shape("moe")).total == pytest.approx(0.22e9, rel=0.02)


def test_an_exception_is_the_result_of_its_measurement() -> None:
    def fails() -> dict[str, Any]:
        raise RuntimeError("CUDA out of memory")

    row = measured("publish", "shared_memory", fails)
    assert (row["status"], row["reason"]) == ("failed", "RuntimeError: CUDA out of memory")
    assert row["values"] == {}


def test_a_process_is_stopped_at_the_end_of_its_budget(gpu_check: ModuleType) -> None:
    ended = gpu_check.run_process(("-c", "import time; time.sleep(600)"), 0.1)
    assert ended.code is None
    assert ended.reason.startswith("not finished after")


def test_a_part_that_is_stopped_keeps_what_it_has_measured(
    gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = {"part": "sampling_dense", "measurement": "speed", "status": "measured", "values": {}}
    stopped = gpu_check.Ended(None, f"noise\n{PREFIX}{json.dumps(speed)}\n", "", 70.0)
    crashed = gpu_check.Ended(-11, "", "Traceback\nSegmentation fault\n", 3.0)
    ends = iter([stopped, crashed])
    monkeypatch.setattr(gpu_check, "run_process", lambda *_: next(ends))
    chosen = [part for part in gpu_check.PARTS if part.name in ("sampling_dense", "publish")]
    first, second, third = gpu_check.run_parts(chosen, "cuda", "full", 360)
    assert first == speed
    assert (second["measurement"], second["status"]) == ("logprob_gap", "failed")
    assert second["reason"] == "not finished after 70 s"
    assert third["reason"] == "the process ended with exit code -11: Segmentation fault"


def test_parts_that_have_no_time_left_are_not_run(gpu_check: ModuleType) -> None:
    rows = list(gpu_check.run_parts(gpu_check.PARTS, "cuda", "full", 0))
    assert {row["status"] for row in rows} == {"not run"}
    assert len(rows) == sum(len(part.measurements) for part in gpu_check.PARTS)


def test_on_a_cpu_parts_have_no_budget(gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: list[float] = []

    def run(arguments: Sequence[str], budget: float) -> Any:
        budgets.append(budget)
        return gpu_check.Ended(0, "", "", 1.0)

    monkeypatch.setattr(gpu_check, "run_process", run)
    list(gpu_check.run_parts(gpu_check.PARTS, "cpu", "tiny", 0))
    assert budgets == [math.inf] * len(gpu_check.PARTS)


def test_failed_gpu_tests_are_reported_with_their_output(
    gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = "E   assert 2 == 1\n1 failed, 3 passed, 4 skipped in 60.00s\n"
    monkeypatch.setattr(gpu_check, "run_process", lambda *_: gpu_check.Ended(1, output, "", 60.0))
    (row,) = gpu_check.run_parts([gpu_check.PARTS[-1]], "cuda", "full", 360)
    assert row["status"] == "failed"
    assert row["values"] == {"failed": 1, "passed": 3, "skipped": 4}
    assert "assert 2 == 1" in row["reason"]
