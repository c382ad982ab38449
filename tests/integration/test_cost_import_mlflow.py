"""Runs of another tool in a real MLflow, imported from its database and from its server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.app import run_command_line
from tests.support.ports import quiet_ports

pytestmark = pytest.mark.slow

START_MS, HOUR_MS = 1_793_491_200_000, 3_600_000


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sweep of two children on two GPUs each, a failed run, one that is still
    running, and one without GPUs.
    """
    from mlflow import MlflowClient

    url = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    client = MlflowClient(url)
    experiment = client.create_experiment("vision")

    def log(
        name: str, hours: int | None, gpus: int, status: str = "FINISHED", parent: str | None = None
    ) -> str:
        tags = {"mlflow.parentRunId": parent} if parent else {}
        run = client.create_run(experiment, START_MS, tags, name)
        for gpu in range(gpus):
            client.log_metric(run.info.run_id, f"system/gpu_{gpu}_utilization_percentage", 90.0)
        if hours is not None:
            client.set_terminated(run.info.run_id, status, START_MS + hours * HOUR_MS)
        return run.info.run_id

    sweep = log("sweep", 8, 2)
    for child in ("a", "b"):
        log(child, 4, 2, parent=sweep)
    log("crash", 1, 4, "FAILED")
    log("going", None, 1)
    log("no-gpu", 5, 0)
    return url


@pytest.fixture(scope="module")
def server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    (port,) = quiet_ports(1)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--workers", "1"]
    command += ["--artifacts-destination", str(tmp_path_factory.mktemp("artifacts"))]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, **quiet, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=30):
                    break
            except OSError:  # the server is not listening or answering yet
                assert process.poll() is None
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.2)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with its workers
        process.wait()


def taken(source: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Any, Any]:
    """The output of the import and of the report after it."""
    where = ["--output-dir", str(folder), "--json"]
    assert run_command_line(["cost", "import", "mlflow", source, "--sku", "cpu-slot", *where]) == 0
    imported = json.loads(capsys.readouterr().out)
    assert run_command_line(["cost", "report", "--by", "job,project,purpose", *where]) == 0
    return imported, json.loads(capsys.readouterr().out)["rows"]


def test_the_database_and_the_server_give_the_same_import(
    database: str, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imported, rows = taken(database, tmp_path / "database", capsys)
    assert (imported["new"], len(imported["waiting"]), len(imported["passed_over"])) == (3, 1, 2)
    assert {(row["job"], row["project"], row["purpose"], row["accelerator_hours"]) for row in rows} == {
        ("a", "vision", "unstated", "8.000000"),
        ("b", "vision", "unstated", "8.000000"),
        ("crash", "vision", "failed", "4.000000"),
    }
    served, same = taken(server, tmp_path / "server", capsys)
    assert same == rows
    assert (served["new"], served["refused"]) == (3, [])
    again, _ = taken(server, tmp_path / "database", capsys)
    assert (again["new"], again["known"]) == (0, 3)
