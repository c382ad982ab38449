"""Reports work where nothing can be written, and list the usage that they lack."""

from __future__ import annotations

import gc
import json
import resource
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.cli.app import run_command_line
from orchestrator.ledger.events import LeaseClosed, LeaseOpened, RunDeclared, event_to_json
from orchestrator.ledger.ledger import Ledger

HOUR = 3_600_000_000_000
START = 1_790_000_000_000_000_000
LAPTOP = Path(__file__).parents[4] / "conf" / "price_book" / "laptop.yaml"


@contextmanager
def full_disk() -> Generator[None]:
    """Prevents all files of this process from growing, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def usage(run: str) -> list[RunDeclared | LeaseOpened | LeaseClosed]:
    return [
        RunDeclared(f"{run}-d", START, run, 1, "grpo", "final", "", "", "blue", "", "", ""),
        LeaseOpened(f"{run}-o", START, f"{run}-l", run, 1, "cpu", "cpu-slot", "n", "", 0),
        LeaseClosed(f"{run}-c", START + HOUR, f"{run}-l", "released"),
    ]


@pytest.fixture
def where(tmp_path: Path) -> list[str]:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    Ledger.open(url, LAPTOP).book(usage("shipped"))
    gc.collect()  # closes the connection, and SQLite then merges its write-ahead log into the file
    spool = tmp_path / "runs" / "spooled" / "ledger" / "1.jsonl"
    spool.parent.mkdir(parents=True)
    spool.write_text("".join(event_to_json(event) + "\n" for event in usage("spooled")))
    return ["--ledger", url, "--output-dir", str(tmp_path / "runs"), "--json"]


@pytest.mark.parametrize(
    "command",
    [
        ["report", "shipped"],
        ["report", "--by", "run"],
        ["report", "--by", "run", "--as-of", f"{datetime.now(UTC):%Y-%m-%d}"],
        ["headline", "shipped"],
        ["waste", "shipped"],
        ["trend"],
        ["verify"],
        ["quarantine"],
        ["prices", "list"],
        ["budget", "variance"],
    ],
)
def test_reports_work_on_a_full_disk_and_list_missing_usage(
    command: list[str], where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with full_disk():
        code = run_command_line(["cost", *command, *where])
    out, err = capsys.readouterr()
    assert code == 0
    document = json.dumps(json.loads(out))
    assert "spooled" not in document
    assert command[0] not in ("report", "headline") or "shipped" in document
    assert "reports lack the usage that is only in spool files" in err


def test_commands_that_must_write_report_that_they_cannot(
    where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with full_disk():
        assert run_command_line(["cost", "purpose", "shipped", "failed", *where]) == 2
    assert json.loads(capsys.readouterr().out)["error"].startswith("Cannot write the ledger at sqlite:///")


def test_the_spool_is_shipped_once_there_is_space_again(
    where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["cost", "report", "--by", "run", *where]) == 0
    out, err = capsys.readouterr()
    assert {row["run"] for row in json.loads(out)["rows"]} == {"shipped", "spooled"}
    assert err == ""
