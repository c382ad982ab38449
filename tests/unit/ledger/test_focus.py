"""The FOCUS export: conforming rows that add up to the report and are the same in CSV and Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from orchestrator.cli.app import run_command_line
from orchestrator.ledger.bill import read_bill
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.events import LeaseClosed, LeaseOpened
from orchestrator.ledger.focus import COLUMNS, FocusRow, focus_rows, write_csv, write_parquet
from orchestrator.ledger.focus_rules import MANDATORY, RECOMMENDED, violations
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.reconcile import Tolerances, reconcile
from tests.focus.sample import START, sample_ledger


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    return sample_ledger(tmp_path_factory.mktemp("focus"))


@pytest.fixture(scope="module")
def rows(ledger: Ledger) -> list[FocusRow]:
    return focus_rows(ledger)


def test_an_export_conforms_to_all_rules(rows: list[FocusRow]) -> None:
    assert {*MANDATORY, *RECOMMENDED} <= set(COLUMNS)
    assert len(MANDATORY) == 21
    assert all(set(row) == set(COLUMNS) for row in rows)
    assert violations(COLUMNS, rows) == []


def test_costs_and_hours_add_up_to_the_report(ledger: Ledger, rows: list[FocusRow]) -> None:
    report = ledger.report_by(["team"])

    def total(name: str) -> Decimal:
        return sum((Decimal(str(row[name])) for row in rows), Decimal(0))

    costs = ("BilledCost", "EffectiveCost", "ListCost", "ContractedCost")
    assert {total(name) for name in costs} == {report.amount}
    assert {total("PricingQuantity"), total("ConsumedQuantity")} == {report.accelerator_hours}
    assert total("x_AcceleratorSeconds") * 10**9 == report.ns


def test_adjustments_of_a_closed_month_are_corrections_in_the_next(rows: list[FocusRow]) -> None:
    september, october = (datetime(2026, month, 1, tzinfo=UTC) for month in (9, 10))
    corrections = [row for row in rows if row["ChargeClass"] == "Correction"]
    assert {row["x_Run"] for row in corrections} == {"rl"}
    for row in corrections:
        assert (row["BillingPeriodStart"], row["ChargePeriodStart"]) == (october, september)
        assert row["ChargePeriodEnd"] == october
    assert sum(Decimal(str(row["ConsumedQuantity"])) for row in corrections) == 2
    invoices = {(row["BillingPeriodStart"], str(row["InvoiceId"])[:8]) for row in rows}
    assert (october, "2026-10-") in invoices
    assert {str(row["InvoiceId"]) for row in rows if row["BillingPeriodStart"] == october} == {"2026-10-open"}


def test_labels_become_accounts_tags_and_custom_columns(rows: list[FocusRow]) -> None:
    [row] = [row for row in rows if row["x_Commitment"] == "spot" and row["x_Activity"] == "update"]
    assert (row["BillingAccountId"], row["SubAccountId"], row["RegionId"]) == ("lab", "cc-7", "us-east-1")
    assert (row["PricingCategory"], row["SkuPriceId"]) == ("Dynamic", "p5.48xlarge/us-east-1/spot")
    assert json.loads(str(row["Tags"])) == {
        "team": "nlp",
        "project": "r1",
        "pipeline": "r1",
        "purpose": "final",
    }
    assert (row["x_Stage"], row["x_Role"], row["ResourceId"]) == ("grpo", "learner", "i-1")
    unnamed = [row for row in rows if row["x_Run"] == "anonymous"]
    assert {row["BillingAccountId"] for row in unnamed} == {"unassigned"}
    assert {row["SubAccountName"] for row in unnamed} == {None}


def test_csv_and_parquet_have_the_same_content(rows: list[FocusRow], tmp_path: Path) -> None:
    write_csv(rows, tmp_path / "focus.csv")
    write_parquet(rows, tmp_path / "focus.parquet")
    with (tmp_path / "focus.csv").open(newline="") as file:
        text = list(csv.DictReader(file))
    stored = pq.read_table(tmp_path / "focus.parquet").to_pylist()
    assert len(text) == len(stored) == len(rows)
    for row, cells, values in zip(rows, text, stored, strict=True):
        assert values == row
        assert cells["ChargePeriodStart"].endswith("T00:00:00Z")
        assert Decimal(cells["BilledCost"]) == row["BilledCost"]
        assert {name for name, cell in cells.items() if not cell} == {
            name for name, value in row.items() if value is None
        }


def test_a_single_period_can_be_exported(ledger: Ledger) -> None:
    later = focus_rows(ledger, START // (24 * 3600 * 10**9) + 30)
    assert {row["BillingPeriodStart"] for row in later} == {datetime(2026, 10, 1, tzinfo=UTC)}


def test_unpriced_usage_is_rejected_rather_than_exported_as_free(tmp_path: Path) -> None:
    ledger = sample_ledger(tmp_path)
    opened = LeaseOpened("odd", START + 40 * 10**9, "odd", "x", 1, "gpu", "mi300", "n", "", 0)
    ledger.book([opened, LeaseClosed("odd-end", START + 10**13, "odd", "released")])
    with pytest.raises(LedgerError, match="mi300"):
        focus_rows(ledger)


def broken(name: str, value: object) -> Callable[[FocusRow], dict[str, object]]:
    return lambda row: {**row, name: value}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (broken("BilledCost", None), "BilledCost"),
        (broken("ListCost", 8.0), "ListCost"),
        (broken("EffectiveCost", Decimal("NaN")), "EffectiveCost"),
        (broken("BillingAccountId", ""), "BillingAccountId"),
        (broken("ProviderName", " us "), "ProviderName"),
        (broken("BillingCurrency", "usd"), "BillingCurrency"),
        (broken("ChargeCategory", "Usages"), "ChargeCategory"),
        (broken("ChargeClass", "Correct"), "ChargeClass"),
        (broken("ChargeFrequency", "Daily"), "ChargeFrequency"),
        (broken("ServiceCategory", "GPUs"), "ServiceCategory"),
        (broken("ServiceSubcategory", "Virtual Machines"), "ServiceSubcategory"),
        (broken("ChargePeriodStart", datetime(2026, 9, 1)), "ChargePeriodStart"),
        (broken("ChargePeriodEnd", datetime(2020, 1, 1, tzinfo=UTC)), "ChargePeriodEnd"),
        (broken("RegionName", "somewhere"), "RegionName"),
        (broken("ConsumedUnit", None), "ConsumedUnit"),
        (broken("PricingQuantity", None), "PricingQuantity"),
        (broken("SkuPriceId", None), "SkuPriceId"),
        (broken("SkuPriceId", "shared"), "SkuPriceId"),
        (broken("Tags", "team=nlp"), "Tags"),
        (broken("Tags", '{"team": {"name": "nlp"}}'), "Tags"),
        (broken("ResourceName", "i-0"), "ResourceName"),
    ],
)
def test_violations_name_row_and_column(
    rows: list[FocusRow], change: Callable[[FocusRow], dict[str, object]], named: str
) -> None:
    place = next(
        index for index, row in enumerate(rows) if row["RegionId"] is None and row["ResourceId"] == "i-0"
    )
    other = next(row for row in rows if row["SkuId"] == "H800")
    changed = [change(rows[place]), change(other) if named == "SkuPriceId" else dict(other)]
    found = violations(COLUMNS, changed)
    assert found
    assert any(reason.startswith(("row 1", "row 2")) and named in reason for reason in found)


def test_every_missing_column_is_a_violation(rows: list[FocusRow]) -> None:
    for name in (*MANDATORY, *RECOMMENDED):
        left = [column for column in COLUMNS if column != name]
        assert violations(left, rows) == [f"column {name} is missing"]
    wrong = "column team: a custom column must be x_ followed by PascalCase"
    assert violations([*COLUMNS, "team"], rows) == [wrong]


def test_an_export_can_be_reconciled_with_its_own_ledger(ledger: Ledger, tmp_path: Path) -> None:
    """A bill contains instance-hours and an export accelerator-hours, so one of eight at a time."""
    rows = focus_rows(ledger, end_day=START // (24 * 3600 * 10**9) + 30)
    measured = [row for row in rows if row["ResourceId"] and row["x_Run"] == "anonymous"]
    for row in measured:
        row["ConsumedQuantity"] = Decimal(str(row["ConsumedQuantity"])) / 8
    write_parquet(measured, tmp_path / "focus.parquet")
    result = reconcile(ledger, read_bill(str(tmp_path / "focus.parquet")), Tolerances())
    assert [finding.detail for finding in result.findings] == []
    assert result.matched.accelerator_hours == 5


def test_the_command_writes_both_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    account = tmp_path / "account.csv"
    header = "organisation,cost_centre,team,project,pipeline,run,stage,purpose,resource,count,start,end,hours"
    line = "lab,,,,p,,s,final,h100,,2026-10-01,,10,2,USD,a paper"
    account.write_text(f"{header},unit_price,currency,source\n{line}\n")
    where = ["--output-dir", str(tmp_path)]
    assert run_command_line(["cost", "import", "csv", str(account), *where]) == 0
    capsys.readouterr()
    for name in ("focus.csv", "focus.parquet"):
        command = ["cost", "export", "focus", "--out", str(tmp_path / name), "--json", *where]
        assert run_command_line(command) == 0
        assert json.loads(capsys.readouterr().out)["billed_cost"] == "20.000000"
    assert run_command_line(["cost", "export", "focus", *where]) == 0
    assert capsys.readouterr().out == (tmp_path / "focus.csv").read_text()
    assert run_command_line(["cost", "export", "focus", "--out", "focus.xlsx", *where]) == 2
