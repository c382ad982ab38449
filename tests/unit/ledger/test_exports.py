"""A report as CSV, Parquet, XLSX and HTML: the same rows in each, exact as far as the format allows."""

import csv
import time
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from openpyxl import load_workbook

from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.exports.html_file import bars
from orchestrator.ledger.exports.sheet import Sheet, report_sheet
from orchestrator.ledger.exports.write import write_sheet
from orchestrator.ledger.report_by import Report, ReportRow

LARGE = 40_000_000 * 3_600_000_000_000


def sheet() -> Sheet:
    rows = (
        ReportRow(("=blue", "gpu"), LARGE, Decimal("40000000.000000"), Decimal("80000000.10")),
        ReportRow(("<green>", "gpu"), 1800, Decimal("0.000001"), Decimal("0.05")),
        ReportRow(("red", "tpu"), 7, Decimal("0.000000"), None),
    )
    report = Report(
        "USD",
        ("team", "resource"),
        rows,
        LARGE + 1807,
        Decimal("40000000.000001"),
        Decimal("80000000.15"),
        ("no tpu",),
    )
    return report_sheet(report, "Costs of all runs", "from 2026-03")


def test_csv_has_the_exact_rows_and_no_total(tmp_path: Path):
    write_sheet(sheet(), tmp_path / "new" / "costs.csv")
    with (tmp_path / "new" / "costs.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["team", "resource", "ns", "accelerator_hours", "amount", "currency"],
        ["'=blue", "gpu", str(LARGE), "40000000.000000", "80000000.10", "USD"],
        ["<green>", "gpu", "1800", "0.000001", "0.05", "USD"],
        ["red", "tpu", "7", "0.000000", "", "USD"],
    ]


def test_parquet_keeps_sums_past_64_bits_and_money_as_decimals(tmp_path: Path):
    write_sheet(sheet(), tmp_path / "costs.parquet")
    table = pq.read_table(tmp_path / "costs.parquet")
    assert table.column("ns").to_pylist() == [Decimal(LARGE), Decimal(1800), Decimal(7)]
    assert table.column("amount").to_pylist() == [Decimal("80000000.10"), Decimal("0.05"), None]
    assert table.schema.metadata[b"currency"] == b"USD"


def test_xlsx_has_rows_total_and_chart_and_a_name_is_never_a_formula(tmp_path: Path):
    write_sheet(sheet(), tmp_path / "costs.xlsx")
    page = load_workbook(tmp_path / "costs.xlsx").active
    assert page is not None
    values = [[cell.value for cell in row] for row in page.iter_rows(min_row=4, max_row=8)]  # type: ignore[union-attr]
    assert values == [
        ["team", "resource", "accelerator-nanoseconds", "accelerator-hours", "USD"],
        ["=blue", "gpu", str(LARGE), 40000000, 80000000.1],
        ["<green>", "gpu", 1800, 0.000001, 0.05],
        ["red", "tpu", 7, 0, "no price"],
        ["total", None, str(LARGE + 1807), 40000000.000001, 80000000.15],
    ]
    assert page["A5"].data_type == "s"  # type: ignore[index]
    properties = load_workbook(tmp_path / "costs.xlsx").properties
    assert properties.created == properties.modified == datetime(1980, 1, 1)


def test_html_is_self_contained_and_escapes_names(tmp_path: Path):
    write_sheet(sheet(), tmp_path / "costs.html")
    page = (tmp_path / "costs.html").read_text(encoding="utf-8")
    assert "&lt;green&gt;" in page and "<green>" not in page
    assert "80,000,000.15" in page and "No price: no tpu" in page
    assert "http" not in page and "<script" not in page
    assert [(bar.label, bar.width) for bar in bars(sheet())] == [
        ("=blue / gpu", "100.00"),
        ("<green> / gpu", "0.00"),
    ]


def test_an_unknown_format_or_an_unwritable_path_is_rejected(tmp_path: Path):
    with pytest.raises(LedgerError, match=r"a name ending in \.csv"):
        write_sheet(sheet(), tmp_path / "costs.doc")
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="a writable file"):
        write_sheet(sheet(), tmp_path / "file" / "costs.csv")


@pytest.mark.parametrize("suffix", ["csv", "html", "parquet", "xlsx"])
def test_writing_a_report_again_gives_identical_bytes(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first, second = tmp_path / f"first.{suffix}", tmp_path / f"second.{suffix}"
    write_sheet(sheet(), first)
    later = time.time() + 400 * 24 * 3600
    monkeypatch.setattr(time, "time", lambda: later)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(later))
    write_sheet(sheet(), second)
    assert first.read_bytes() == second.read_bytes()
