"""Exports the ledger as a FOCUS 1.2 dataset (FinOps Open Cost and Usage Specification): one row per kind of
usage and day, with costs that add up to the report's total.

The ledger takes the role of the provider and charges those who use accelerators. docs/reference/focus.md
documents each column. Custom columns begin with `x_`, as the specification requires.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from orchestrator.ledger.archive import Close
from orchestrator.ledger.calendar import date_of, month_bounds
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.exports.text import csv_text, printable
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.money import AMOUNT_PLACES, to_decimal
from orchestrator.ledger.report_by import Report

VERSION = "1.2"

PROVIDER = "rl-orchestrator"
SERVICE_NAME = "Accelerator time"
SERVICE_CATEGORY, SERVICE_SUBCATEGORY = "AI and Machine Learning", "Machine Learning"
UNIT = "Hours"
UNASSIGNED = "unassigned"
"""The billing account of usage without an organisation, because that column must not be empty."""

DIMENSIONS = (
    *("posted", "kind", "month", "day", "organisation", "cost_centre", "team", "project", "pipeline"),
    *("job", "run", "attempt", "stage", "purpose", "role", "activity", "resource", "sku", "node"),
    *("region", "commitment"),
)

TEXT = (
    *("BillingAccountId", "BillingAccountName", "BillingCurrency", "ChargeCategory", "ChargeClass"),
    *(
        "ChargeDescription",
        "ChargeFrequency",
        "CommitmentDiscountId",
        "CommitmentDiscountStatus",
        "ConsumedUnit",
        "InvoiceId",
        "InvoiceIssuerName",
    ),
    *("PricingCategory", "PricingUnit", "ProviderName", "PublisherName", "RegionId", "RegionName"),
    *("ResourceId", "ResourceName", "ResourceType", "ServiceCategory", "ServiceName"),
    *("ServiceSubcategory", "SkuId", "SkuMeter", "SkuPriceId", "SubAccountId", "SubAccountName", "Tags"),
)
TIMES = ("BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd")
NUMBERS = (
    *("BilledCost", "ContractedCost", "EffectiveCost", "ListCost"),
    *("ConsumedQuantity", "PricingQuantity"),
)
CUSTOM = {
    "x_CostCentre": "cost_centre",
    "x_Team": "team",
    "x_Project": "project",
    "x_Pipeline": "pipeline",
    "x_Job": "job",
    "x_Run": "run",
    "x_Attempt": "attempt",
    "x_Stage": "stage",
    "x_Purpose": "purpose",
    "x_Role": "role",
    "x_Activity": "activity",
    "x_Commitment": "commitment",
}
"""Custom columns and the dimensions they contain."""

EXACT = "x_AcceleratorSeconds"
"""The exact quantity, in seconds: as nanoseconds some CSV readers would need 128-bit integers."""

COLUMNS = (*sorted((*TEXT, *TIMES, *NUMBERS)), *CUSTOM, EXACT)

PRICING_CATEGORIES = {"on_demand": "Standard", "reserved": "Committed", "spot": "Dynamic", "owned": "Other"}

FocusRow = dict[str, str | Decimal | datetime | None]


def focus_rows(
    ledger: Ledger,
    first_day: int | None = None,
    end_day: int | None = None,
    as_of_ns: int | None = None,
    places: int = AMOUNT_PLACES,
) -> list[FocusRow]:
    """What counts on the days [first_day, end_day) as rows, in order of time and labels.

    Labels are stripped, and their control characters replaced. Raises LedgerError if something has no price,
    because a FOCUS row needs a cost.
    """
    report = ledger.report_by(DIMENSIONS, first_day, end_day, as_of_ns, places)
    if report.unpriced:
        hint = "adopt a price book that covers it"
        raise LedgerError("price", report.unpriced[0], "a price for everything that is exported", hint)
    closes = {close.period: close for close in ledger.closes(as_of_ns)}
    return list(_rows(report, closes))


def _rows(report: Report, closes: Mapping[str, Close]) -> Iterator[FocusRow]:
    for row in report.rows:
        label = {
            name: printable(str(value).strip()) for name, value in zip(DIMENSIONS, row.values, strict=True)
        }
        assert row.amount is not None
        yield {
            **_charge(label, report.currency, row.amount, row.accelerator_hours),
            **_periods(label),
            **_names(label, closes.get(label["posted"])),
            **{column: label[name] or None for column, name in CUSTOM.items()},
            EXACT: to_decimal(row.ns, 9),
        }


def _charge(label: Mapping[str, str], currency: str, amount: Decimal, hours: Decimal) -> FocusRow:
    """Costs and quantities. All four costs are equal: nothing is negotiated or discounted afterwards."""
    what = f"{label['role']} {label['activity']}" if label["role"] != "none" else label["activity"]
    return {
        "BilledCost": amount,
        "EffectiveCost": amount,
        "ListCost": amount,
        "ContractedCost": amount,
        "BillingCurrency": currency,
        "ChargeCategory": "Usage",
        "ChargeClass": "Correction" if label["kind"] == "adjustment" else None,
        "ChargeDescription": f"{label['sku']}: {what}, run {label['run']}",
        "ChargeFrequency": "Usage-Based",
        "CommitmentDiscountId": None,
        "CommitmentDiscountStatus": None,
        "ConsumedQuantity": hours,
        "ConsumedUnit": UNIT,
        "PricingQuantity": hours,
        "PricingUnit": UNIT,
        "PricingCategory": PRICING_CATEGORIES.get(label["commitment"], "Standard"),
    }


def _periods(label: Mapping[str, str]) -> FocusRow:
    """The billing month, and the charge period: the day of the usage, or for an adjustment its month."""
    billed = month_bounds(label["posted"])
    if label["kind"] == "adjustment":
        charged = month_bounds(label["month"])
        first, last = (date_of(day) for day in charged)
    else:
        first = date.fromisoformat(label["day"])
        last = first + timedelta(days=1)
    return {
        "BillingPeriodStart": _midnight(date_of(billed[0])),
        "BillingPeriodEnd": _midnight(date_of(billed[1])),
        "ChargePeriodStart": _midnight(first),
        "ChargePeriodEnd": _midnight(last),
    }


def _names(label: Mapping[str, str], close: Close | None) -> FocusRow:
    organisation = label["organisation"] or UNASSIGNED
    region, centre = label["region"] or None, label["cost_centre"] or None
    invoice = f"{label['posted']}-{'open' if close is None else close.head[:12]}"
    tags = {name: label[name] for name in ("team", "project", "pipeline", "purpose") if label[name]}
    return {
        "BillingAccountId": organisation,
        "BillingAccountName": organisation,
        "SubAccountId": centre,
        "SubAccountName": centre,
        "InvoiceId": invoice,
        "InvoiceIssuerName": PROVIDER,
        "ProviderName": PROVIDER,
        "PublisherName": PROVIDER,
        "ServiceCategory": SERVICE_CATEGORY,
        "ServiceSubcategory": SERVICE_SUBCATEGORY,
        "ServiceName": SERVICE_NAME,
        "RegionId": region,
        "RegionName": region,
        "ResourceId": label["node"] or None,
        "ResourceName": None,
        "ResourceType": label["resource"].upper() if label["node"] else None,
        "SkuId": label["sku"],
        "SkuMeter": label["sku"],
        "SkuPriceId": "/".join(part for part in (label["sku"], region, label["commitment"]) if part),
        "Tags": json.dumps(tags, sort_keys=True),
    }


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def write_csv(rows: Sequence[FocusRow], path: Path) -> None:
    """Write CSV in UTF-8: decimals with all their places, times as `2026-11-01T00:00:00Z`, null
    as an empty cell.

    Text that a spreadsheet would treat as a formula is prefixed with a quote (`exports.text.csv_text`).
    """
    import csv

    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([_cell(row[name]) for name in COLUMNS] for row in rows)


def write_parquet(rows: Sequence[FocusRow], path: Path) -> None:
    """Write Parquet: decimals with 12 places, times in microseconds, UTC."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds: dict[str, Any] = {
        **dict.fromkeys((*NUMBERS, EXACT), pa.decimal128(38, 12)),
        **dict.fromkeys(TIMES, pa.timestamp("us", tz="UTC")),
    }
    schema = pa.schema([pa.field(name, kinds.get(name, pa.string())) for name in COLUMNS])
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema), path)


def _cell(value: str | Decimal | datetime | None) -> str:
    if value is None:
        return ""
    if isinstance(value, Decimal):
        return f"{value:f}"
    return csv_text(value) if isinstance(value, str) else value.strftime("%Y-%m-%dT%H:%M:%SZ")
