"""Inputs that cost commands reject with exit code 2 and a sentence, and remarks beside their figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.cli.app import run_command_line
from orchestrator.ledger.calendar import HOUR_NS, parse_moment
from orchestrator.ledger.events import UsageStated
from orchestrator.ledger.ledger import Ledger

PRICE = {
    "sku": "h100",
    "resource": "gpu",
    "region": "x",
    "commitment": "on_demand",
    "amount": "2",
    "currency": "EUR",
    "from": "2020-01-01",
    "to": None,
    "source": "made up",
    "retrieved": "2026-01-01",
}
EUROS = {"name": "t", "currency": "EUR", "region": "x", "commitment": "on_demand", "prices": [PRICE]}


@pytest.fixture
def where(tmp_path: Path) -> list[str]:
    """The options of a ledger in euros."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    Ledger.open(url, EUROS)
    return ["--ledger", url, "--output-dir", str(tmp_path / "runs"), "--json"]


BUDGET = ["cost", "budget", "set", "b", "--limit", "10", "--from", "2026-11"]


@pytest.mark.parametrize("currency", ["eur", "USD", "euro", ""])
def test_a_budget_in_another_currency_than_the_ledgers_is_refused(
    currency: str, where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line([*BUDGET, "--currency", currency, *where]) == 2
    refused = json.loads(capsys.readouterr().out)
    assert (refused["key"], refused["value"]) == ("--currency", currency)
    assert "EUR" in refused["allowed"]
    assert run_command_line(["cost", "budget", "list", *where]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize("stated", [[], ["--currency", "EUR"]])
def test_a_budget_is_in_the_ledgers_currency(
    stated: list[str], where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line([*BUDGET, *stated, *where]) == 0
    assert json.loads(capsys.readouterr().out)[0]["currency"] == "EUR"


@pytest.mark.parametrize(
    "command",
    [
        ["reconcile", "--cur", "{}/nothing.parquet", "--sign-off", "Ada"],
        ["reconcile-ray", "{}/nothing.json"],
        ["prices", "import-aws", "{}/nothing.json"],
        ["export", "focus"],
    ],
)
@pytest.mark.parametrize("out", ["file/out.csv", "folder.csv"])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    command: list[str], out: str, where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.csv").mkdir()
    words = [word.format(tmp_path) for word in command]
    options = ["--json"] if words[0] == "prices" else where
    assert run_command_line(["cost", *words, "--out", str(tmp_path / out), *options]) == 2
    refused = json.loads(capsys.readouterr().out)
    assert (refused["key"], refused["value"]) == ("--out", str(tmp_path / out))
    assert refused["allowed"] == "a writable file"


@pytest.mark.slow
def test_variance_and_forecast_mention_usage_without_a_price(
    where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    at, hours = parse_moment("2026-11-02T00:00:00"), str(5 * HOUR_NS // 2)
    ledger = Ledger.open(where[1])
    ledger.book([UsageStated("u", "r", "gpu", "b300", hours, at, at + HOUR_NS, "", "", "typed in")])
    assert run_command_line([*BUDGET, *where]) == 0
    capsys.readouterr()
    for words in (["budget", "variance"], ["forecast"]):
        assert run_command_line(["cost", *words, *where]) == 0
        assert json.loads(capsys.readouterr().out)[0]["unpriced"] == {"b300": "2.500000"}
        assert run_command_line(["cost", *words, *where[:-1]]) == 0
        assert capsys.readouterr().err == "no price: 2.500000 accelerator-hours of b300 in b\n"
