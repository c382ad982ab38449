"""Creates a new MLflow database in a child process.

Two seconds of migrations would delay the controller. Also, MLflow migrates with Alembic, which keeps
the current migration in module globals: migrating another database (such as the ledger) in the same
process at the same time breaks both.
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
    """Create the SQLite database of `uri`, with MLflow's tables, if it is
    missing. Does nothing for other URIs.

    The complete file appears atomically, so runs that start together can all try. Raises
    TrackerRefusedError if MLflow cannot create it.
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
        raise TrackerUnavailableError(f"MLflow created no database within {TIMEOUT_SECONDS} s") from error
    except subprocess.CalledProcessError as error:
        last_line = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise TrackerRefusedError(f"MLflow could not create its database {path.name}: {last_line}") from error
