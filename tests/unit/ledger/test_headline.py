"""Headline and full cost: published accounts reproduced to the dollar, and a measured pipeline."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.app import run_command_line
from orchestrator.ledger.calendar import HOUR_NS
from orchestrator.ledger.errors import UnknownRunError
from orchestrator.ledger.events import LeaseClosed, LeaseOpened, PurposeSet, RunDeclared, SpanRecorded
from orchestrator.ledger.headline import HeadlineLine, headline
from orchestrator.ledger.imports import csv
from orchestrator.ledger.imports.statements import take
from orchestrator.ledger.ledger import Ledger

ACCOUNTS = Path(__file__).parents[3] / "docs" / "examples" / "accounts"

PRICES: dict[str, Any] = {
    "name": "test",
    "currency": "USD",
    "region": "here",
    "commitment": "on_demand",
    "prices": [
        {
            "sku": "h100",
            "resource": "gpu",
            "region": "here",
            "commitment": "on_demand",
            "amount": "3",
            "currency": "USD",
            "from": "2020-01-01",
            "to": None,
            "source": "made up",
            "retrieved": "2026-01-01",
        }
    ],
}
AT = 20_000 * 24 * HOUR_NS


def published(name: str) -> dict[str, Any]:
    ledger = Ledger.in_memory(PRICES)
    done = take(ledger, csv.read(ACCOUNTS / f"{name}.csv"), AT)
    assert done.refused == ()
    return headline(ledger, name).to_dict()


def recorded(account: dict[str, Any]) -> dict[str, tuple[Decimal, Decimal]]:
    return {
        line["stage"]: (Decimal(line["accelerator_hours"]), Decimal(line["amount"]))
        for line in account["lines"]
        if line["state"] == "recorded"
    }


@pytest.mark.parametrize(
    ("name", "stages", "hours", "dollars"),
    [
        (
            "deepseek-v3",
            {
                "pre-training": (2_664_000, 5_328_000),
                "context-extension": (119_000, 238_000),
                "post-training": (5_000, 10_000),
            },
            2_788_000,
            5_576_000,
        ),
        (
            "deepseek-r1",
            {"r1-zero": (101_000, 202_000), "sft-data": (5_000, 10_000), "r1": (41_000, 82_000)},
            147_000,
            294_000,
        ),
        (
            "olmo-3-think-32b",
            {"pre-training": (1_155_072, 2_310_144), "post-training": (221_184, 442_368)},
            1_376_256,
            2_752_512,
        ),
    ],
)
def test_published_accounts_are_reproduced_to_the_dollar(
    name: str, stages: dict[str, tuple[int, int]], hours: int, dollars: int
) -> None:
    account = published(name)
    assert list(recorded(account).items()) == list(stages.items())
    for total in (account["headline"], account["full"]):
        assert (Decimal(total["accelerator_hours"]), Decimal(total["amount"])) == (hours, dollars)
    left_out = [line for line in account["lines"] if line["state"] == "not_published"]
    assert len(left_out) >= 3
    assert all(line["accelerator_hours"] is None and line["amount"] is None for line in left_out)
    assert all(line["reason"] for line in left_out)


def declared(run: str, stage: str, purpose: str, at: int = 0) -> RunDeclared:
    return RunDeclared(f"declare-{run}", at, run, 1, "r1", purpose, "lab", "", "nlp", "r1", "r1-run", stage)


def lease(run: str, number: int, hours: int, worked: int, reason: str = "released") -> list[Any]:
    name = f"{run}/{number}"
    start, end = AT + number * HOUR_NS, AT + (number + hours) * HOUR_NS
    return [
        LeaseOpened(f"open-{name}", start, name, run, 1, "gpu", "h100", "n0", "", number),
        SpanRecorded(f"span-{name}", name, "w", "rollout", "generate", start, start + worked * HOUR_NS, 0, 0),
        LeaseClosed(f"close-{name}", end, name, reason),
    ]


@pytest.fixture
def measured() -> Ledger:
    ledger = Ledger.in_memory(PRICES)
    ledger.book(
        [
            declared("cold", "cold_start", "final"),
            *lease("cold", 0, 4, 3),
            declared("rl-1", "grpo", "final"),
            PurposeSet("it-failed", 1, "rl-1", "failed"),
            *lease("rl-1", 0, 5, 2, "lost"),
            declared("rl-2", "grpo", "final"),
            *lease("rl-2", 0, 10, 10),
            *lease("rl-2", 1, 10, 9),
            declared("eval", "evaluate", "evaluation"),
            *lease("eval", 0, 1, 1),
            RunDeclared("other", 0, "x", 1, "grpo", "final", "lab", "", "nlp", "r1", "another", "grpo"),
            *lease("x", 0, 100, 100),
        ]
    )
    return ledger


def test_the_full_cost_includes_everything_besides_the_final_runs(measured: Ledger) -> None:
    account = headline(measured, "r1-run")
    lines = [(line.stage, line.purpose, line.kind, line.accelerator_hours) for line in account.lines]
    assert lines == [
        ("cold_start", "final", "work", 3),
        ("cold_start", "final", "idle", 1),
        ("grpo", "final", "work", 19),
        ("grpo", "final", "idle", 1),
        ("evaluate", "evaluation", "work", 1),
        ("grpo", "failed", "work", 2),
        ("grpo", "failed", "lost", 3),
    ]
    assert account.headline.to_dict() == {"accelerator_hours": "24.000000", "amount": "72.000000"}
    assert account.full.to_dict() == {"accelerator_hours": "30.000000", "amount": "90.000000"}
    assert [(share.run, share.used.amount) for share in account.runs] == [
        ("cold", 12),
        ("rl-1", 15),
        ("rl-2", 60),
        ("eval", 3),
    ]


def test_unexplained_billed_time_is_part_of_the_full_cost(measured: Ledger) -> None:
    line = HeadlineLine("", "", "work", None, Decimal("7.50"), "unexplained", "billed, leased by nobody")
    account = headline(measured, "r1-run", line)
    assert (account.headline.amount, account.full.amount) == (72, Decimal("97.50"))
    assert account.to_dict()["lines"][-1]["state"] == "unexplained"


def test_unpriced_usage_is_listed_and_not_in_any_amount(measured: Ledger) -> None:
    measured.book(
        [
            declared("cold-2", "cold_start", "ablation"),
            LeaseOpened("odd-open", AT, "odd", "cold-2", 1, "gpu", "mi300", "n0", "", 0),
            LeaseClosed("odd-close", AT + HOUR_NS, "odd", "released"),
        ]
    )
    account = headline(measured, "r1-run")
    [line] = [line for line in account.lines if line.purpose == "ablation"]
    assert (line.accelerator_hours, line.amount) == (1, None)
    assert account.full.amount == 90
    assert "mi300" in account.unpriced[0]


def test_an_unknown_pipeline_is_refused(measured: Ledger) -> None:
    with pytest.raises(UnknownRunError):
        headline(measured, "r2")


@pytest.mark.slow
def test_the_command_prints_the_costs_and_the_lineage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--output-dir", str(tmp_path)]
    account = tmp_path / "account.csv"
    names = ("base", "cold", "rl")
    rows = [
        f"lab,,,r1,{'r0' if run == 'base' else 'r1'},{run},{run},final,cpu-slot,,2026-01-01,,2,,,made up"
        for run in names
    ]
    account.write_text("\n".join([",".join(csv.COLUMNS), *rows]) + "\n")
    for run, model in zip(
        names, ("/models/v3", tmp_path / "base/model", tmp_path / "cold/model"), strict=True
    ):
        (tmp_path / run).mkdir()
        (tmp_path / run / "manifest.json").write_text(json.dumps({"model": {"path": str(model)}}))
    assert run_command_line(["cost", "import", "csv", str(account), *where]) == 0
    capsys.readouterr()
    assert run_command_line(["cost", "headline", "r1", "--json", *where]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["headline"] == document["full"] == {"accelerator_hours": "4.000000", "amount": "0.163200"}
    assert [(run["run"], run["started_from"]) for run in document["lineage"]] == [
        ("cold", "base"),
        ("rl", "cold"),
    ]
    assert run_command_line(["cost", "headline", "r1", *where]) == 0
    printed = capsys.readouterr().out
    assert "headline (final)" in printed
    assert "base started from /models/v3" in printed
