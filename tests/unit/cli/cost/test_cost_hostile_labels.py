"""Cost commands print labels without interpreting them, and exported files are safe to open."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from orchestrator.cli.app import run_command_line
from orchestrator.ledger.events import LeaseClosed, LeaseOpened, RunDeclared
from orchestrator.ledger.ledger import Ledger

HOUR = 3_600_000_000_000
START = 1_790_000_000_000_000_000
LAPTOP = Path(__file__).parents[4] / "conf" / "price_book" / "laptop.yaml"
TEAM, STAGE = "=[/red]\x1b]0;title\x07", "\x1b[31m+stage"


@pytest.fixture
def where(tmp_path: Path) -> list[str]:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    Ledger.open(url, LAPTOP).book(
        [
            RunDeclared("d", START, "r", 1, "grpo", "final", "", "", TEAM, "", "p", STAGE),
            LeaseOpened("o", START, "l", "r", 1, "cpu", "unpriced", TEAM, "", 0),
            LeaseClosed("c", START + HOUR, "l", "released"),
        ]
    )
    return ["--ledger", url, "--output-dir", str(tmp_path / "runs")]


@pytest.mark.parametrize(
    "command",
    [["report", "--by", "team,stage,node"], ["headline", "p"], ["quarantine"], ["trend", "--by", "team"]],
)
def test_labels_are_printed_without_control_sequences(
    command: list[str], where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["cost", *command, *where]) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "\x07" not in out + err


def test_every_format_of_a_report_is_written(where: list[str], tmp_path: Path) -> None:
    for suffix in ("csv", "xlsx", "parquet", "html"):
        file = tmp_path / f"report.{suffix}"
        command = ["cost", "report", "--by", "team,stage,node", "--output", str(file), *where]
        assert run_command_line(command) == 0
        assert file.stat().st_size > 0
    with (tmp_path / "report.csv").open(encoding="utf-8", newline="") as file:
        _, row = list(csv.reader(file))
    assert row[:3] == ["'=[/red]␛]0;title␇", "␛[31m+stage", "'=[/red]␛]0;title␇"]
