"""A new MLflow database, made in a process of its own.

Two seconds of migrations would compete with the controller for this process, and Alembic, which MLflow
migrates with, keeps the migration that is going on in module globals: another database that is migrated at
the same time in the same process (the ledger, say) breaks both.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from orchestrator.training.telemetry.tracker import TrackerRefusedError, TrackerUnavailableError

SQLITE = "sqlite:///"
PROGRAM = "import sys, mlflow; mlflow.MlflowClient(tracking_uri=sys.argv[1]).search_experiments()"
TIMEOUT_SECONDS = 180


def ensure_database(uri: str) -> None:
    """Make the SQLite database of `uri`, with MLflow's tables, if it is missing; nothing for any other URI.

    The file appears at once and whole, so that runs which start together can all try. Raises
    TrackerRefusedError if MLflow can't make it.
    """
    path = Path(uri.removeprefix(SQLITE).partition("?")[0])
    if not uri.startswith(SQLITE) or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".mlflow-") as folder:
        new = Path(folder) / path.name
        _create(new)
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(new)


def _create(path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, f"{SQLITE}{path}"]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    try:
        subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise TrackerUnavailableError(f"MLflow made no database in {TIMEOUT_SECONDS} s") from error
    except subprocess.CalledProcessError as error:
        last_line = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise TrackerRefusedError(f"MLflow could not make its database {path.name}: {last_line}") from error
