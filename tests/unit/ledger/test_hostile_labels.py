"""Labels are untrusted: in no export do they become a formula, break the file or change a number."""

from __future__ import annotations

import csv
import re
import tempfile
from decimal import Decimal
from pathlib import Path
from zipfile import ZipFile

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openpyxl import load_workbook

from orchestrator.ledger.errors import MalformedEventError
from orchestrator.ledger.events import LeaseClosed, LeaseOpened, RunDeclared, event_to_json
from orchestrator.ledger.exports.sheet import Sheet, report_sheet
from orchestrator.ledger.exports.text import csv_text, printable
from orchestrator.ledger.exports.write import write_sheet
from orchestrator.ledger.focus import COLUMNS, CUSTOM, EXACT, NUMBERS, focus_rows
from orchestrator.ledger.focus import write_csv as write_focus_csv
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.report_by import Report, ReportRow

TRIGGERS = "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"
labels = st.text(
    st.sampled_from([*TRIGGERS, *" ;,\"'<&x1|", "\x00", "\x1b", "\x7f", "\x9b", "\uffff"]), max_size=12
)
amounts = st.decimals(-1000, 1000, places=2, allow_nan=False, allow_infinity=False)
PRICES = {
    "name": "test",
    "currency": "USD",
    "region": "here",
    "commitment": "on_demand",
    "prices": [
        {"sku": "gpu", "resource": "gpu", "amount": "2", "source": "a test", "from": "2020-01-01"}
        | {
            "currency": "USD",
            "to": None,
            "retrieved": "2026-01-01",
            "region": "here",
            "commitment": "on_demand",
        }
    ],
    "rates": [],
}


def sheet_of(label: str, amount: Decimal) -> Sheet:
    row = ReportRow((label, "gpu"), 7, Decimal("0.01"), amount)
    report = Report("USD", ("team", "resource"), (row,), 7, Decimal("0.01"), amount, (label,))
    return report_sheet(report, label, label)


def begins_a_formula(cell: str) -> bool:
    """Whether a spreadsheet could evaluate the cell, or a part of it if semicolons separate cells."""
    return any(part.lstrip()[:1] in set(TRIGGERS) for part in cell.split(";") if part.lstrip())


@given(labels, amounts)
@settings(max_examples=60, deadline=None)
def test_no_csv_cell_is_a_formula_and_numbers_stay_numbers(label: str, amount: Decimal):
    with tempfile.TemporaryDirectory() as folder:
        write_sheet(sheet_of(label, amount), Path(folder) / "costs.csv")
        with (Path(folder) / "costs.csv").open(encoding="utf-8", newline="") as file:
            _, [team, resource, ns, hours, money, currency] = list(csv.reader(file))
    assert team == csv_text(label)
    assert not begins_a_formula(team)
    assert team.replace("'", "") == printable(label).replace("'", "")
    assert (resource, ns, Decimal(hours), Decimal(money), currency) == (
        "gpu",
        "7",
        Decimal("0.01"),
        amount,
        "USD",
    )


@pytest.mark.slow
@given(labels, amounts)
@settings(max_examples=25, deadline=None)
def test_every_text_cell_of_a_workbook_is_text(label: str, amount: Decimal):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "costs.xlsx"
        write_sheet(sheet_of(label, amount), path)
        page = load_workbook(path).active
        with ZipFile(path) as parts:
            xml = parts.read("xl/worksheets/sheet1.xml").decode()
    assert page is not None
    assert not re.search("<f[ >]", xml)
    cells = [cell for row in page.iter_rows() for cell in row if cell.value is not None]  # type: ignore[union-attr]
    assert {cell.data_type for cell in cells} <= {"s", "n"}
    assert page["E5"].value == float(amount)  # type: ignore[index]
    if label:
        shown = [page[place].value for place in ("A1", "A2", "A5")]  # type: ignore[index]
        assert shown == [printable(label)] * 3


@pytest.mark.slow
@given(labels, amounts)
@settings(max_examples=25, deadline=None)
def test_parquet_keeps_labels_unchanged_and_html_escapes_them(label: str, amount: Decimal):
    with tempfile.TemporaryDirectory() as folder:
        write_sheet(sheet_of(label, amount), Path(folder) / "costs.parquet")
        assert pq.read_table(Path(folder) / "costs.parquet").column("team").to_pylist() == [label]
        write_sheet(sheet_of(f"<b>{label}", amount), Path(folder) / "costs.html")
        page = (Path(folder) / "costs.html").read_text(encoding="utf-8")
    assert "<b>" not in page
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", page)


def test_title_and_period_are_never_formulas(tmp_path: Path):
    write_sheet(sheet_of('=HYPERLINK("http://x","y")', Decimal(1)), tmp_path / "costs.xlsx")
    page = load_workbook(tmp_path / "costs.xlsx").active
    assert page is not None
    for place in ("A1", "A2", "A5", "A8"):
        cell = page[place]  # type: ignore[index]
        assert (cell.data_type, "HYPERLINK" in cell.value, cell.quotePrefix) == ("s", True, True)


@pytest.fixture
def hostile_ledger() -> Ledger:
    now = 1_790_000_000_000_000_000
    ledger = Ledger.in_memory(PRICES, now_ns=lambda: now)
    start = now - 3_600_000_000_000
    declared = RunDeclared(
        "d", start, "=run", 1, "+job", "final", "@org", "-1", "\x1bteam", "\t=p", "a;=b", ""
    )
    opened = LeaseOpened("o", start, "l", "=run", 1, "gpu", "gpu", "=node", "", 0)
    ledger.book([declared, opened, LeaseClosed("c", now, "l", "released")])
    return ledger


def test_the_focus_export_has_no_formula(hostile_ledger: Ledger, tmp_path: Path):
    rows = focus_rows(hostile_ledger)
    write_focus_csv(rows, tmp_path / "focus.csv")
    with (tmp_path / "focus.csv").open(encoding="utf-8", newline="") as file:
        [cells] = list(csv.DictReader(file))
    text = {name: cells[name] for name in COLUMNS if name not in (*NUMBERS, EXACT)}
    assert [name for name, cell in text.items() if begins_a_formula(cell)] == []
    assert (cells["SubAccountId"], cells["x_Run"], cells["ResourceId"]) == ("'-1", "'=run", "'=node")
    assert (cells["x_Team"], cells["x_Pipeline"]) == ("␛team", "a;'=b")
    assert Decimal(cells["BilledCost"]) == 2
    assert set(CUSTOM) <= set(cells)


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
def test_text_that_databases_cannot_store_is_rejected_with_its_field(text: str):
    declared = RunDeclared("d", 1, "r", 1, "", "final", "", "", text, "", "", "")
    ledger = Ledger.in_memory(PRICES)
    with pytest.raises(MalformedEventError, match="team"):
        ledger.book(
            [
                {"schema": 1, "type": "run_declared"}
                | {name: getattr(declared, name) for name in declared.__slots__}
            ]
        )
    assert "team" in event_to_json(declared)
