import subprocess
from pathlib import Path
from typing import Any

import pytest

from orchestrator.training.telemetry.mlflow_database import ensure_database
from orchestrator.training.telemetry.tracker import TrackerRefusedError, TrackerUnavailableError


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that the other process was asked to create, which it does."""
    files: list[Path] = []

    def run(command: list[str], **_: Any) -> None:
        files.append(Path(command[-1].removeprefix("sqlite:///")))
        files[-1].write_text("new")

    monkeypatch.setattr(subprocess, "run", run)
    return files


def test_a_missing_database_appears_whole_and_leaves_nothing_else(made: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "runs" / "mlflow.db"
    ensure_database(f"sqlite:///{path}?timeout=5")
    assert path.read_text() == "new"
    assert made[0].parent != path.parent
    assert list(path.parent.iterdir()) == [path]


def test_an_existing_database_is_left_alone(made: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_text("old")
    ensure_database(f"sqlite:///{path}")
    assert (path.read_text(), made) == ("old", [])


def test_the_second_process_uses_the_database_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mlflow.db"

    def run(command: list[str], **_: Any) -> None:
        Path(command[-1].removeprefix("sqlite:///")).write_text("second")
        path.write_text("first")

    monkeypatch.setattr(subprocess, "run", run)
    ensure_database(f"sqlite:///{path}")
    assert path.read_text() == "first"


@pytest.mark.parametrize(
    "uri", ["https://mlflow.example.com", "postgresql://db/mlflow", "file:///tmp/mlruns"]
)
def test_databases_of_servers_are_not_created(made: list[Path], uri: str) -> None:
    ensure_database(uri)
    assert made == []


FAILED = subprocess.CalledProcessError(1, "python", stderr="Traceback\nImportError: no mlflow")
HUNG = subprocess.TimeoutExpired("python", 180)


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (FAILED, TrackerRefusedError, "ImportError: no mlflow"),
        (HUNG, TrackerUnavailableError, "no database within 180 s"),
    ],
)
def test_a_failing_process_is_reported(
    raised: Exception,
    expected: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(expected, match=message):
        ensure_database(f"sqlite:///{tmp_path}/mlflow.db")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_folder_is_an_error(made: list[Path], tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(FileExistsError):
        ensure_database(f"sqlite:///{tmp_path}/runs/mlflow.db")
    assert made == []
