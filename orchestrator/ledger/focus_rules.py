"""The rules of FOCUS 1.2 for mandatory columns and for the columns that this export adds.

Every export is checked against them. The FinOps Foundation's validator checks all 600 rules (`make
focus-validate`). Specification: https://focus.finops.org/focus-specification/v1-2/
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from decimal import Decimal

MANDATORY = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ContractedCost",
    "EffectiveCost",
    "InvoiceIssuerName",
    "ListCost",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "ServiceCategory",
    "ServiceName",
)
RECOMMENDED = ("ChargeFrequency", "InvoiceId", "ServiceSubcategory")

_MAY_BE_NULL = frozenset({"ChargeClass", "PricingQuantity", "PricingUnit"})
_COSTS = ("BilledCost", "ContractedCost", "EffectiveCost", "ListCost")
_TIMES = ("BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd")
_ALLOWED = {
    "ChargeCategory": ("Usage", "Purchase", "Tax", "Credit", "Adjustment"),
    "ChargeClass": (None, "Correction"),
    "ChargeFrequency": ("One-Time", "Recurring", "Usage-Based"),
    "PricingCategory": (None, "Standard", "Dynamic", "Committed", "Other"),
}
_SUBCATEGORIES = {
    "AI and Machine Learning": (
        "AI Platforms",
        "Bots",
        "Generative AI",
        "Machine Learning",
        "Natural Language Processing",
        "Other (AI and Machine Learning)",
    ),
    "Compute": (
        "Containers",
        "End User Computing",
        "Quantum Compute",
        "Serverless Compute",
        "Virtual Machines",
        "Other (Compute)",
    ),
}
_TOGETHER = (
    ("RegionId", "RegionName"),
    ("SubAccountId", "SubAccountName"),
    ("ConsumedQuantity", "ConsumedUnit"),
    ("PricingQuantity", "PricingUnit"),
    ("SkuId", "SkuMeter"),
)
"""Pairs of columns that are null in the same rows."""

_CURRENCY = re.compile(r"[A-Z]{3}")
_CUSTOM = re.compile(r"x_[A-Z][A-Za-z0-9]*")


def violations(columns: Iterable[str], rows: Iterable[Mapping[str, object]]) -> list[str]:
    """Violations of the rules, each with its row (from 1) and column; empty if there are none."""
    found = [f"column {name} is missing" for name in (*MANDATORY, *RECOMMENDED) if name not in set(columns)]
    found += [
        f"column {name}: a custom column must be x_ followed by PascalCase"
        for name in columns
        if not name[:1].isupper() and not _CUSTOM.fullmatch(name)
    ]
    if found:
        return found
    parents: dict[object, object] = {}
    for number, row in enumerate(rows, 1):
        found += [f"row {number} {reason}" for reason in _row(row)]
        for child, parent in (("SkuPriceId", "SkuId"), ("ServiceName", "ServiceCategory")):
            key = (child, row.get(child))
            if parents.setdefault(key, row.get(parent)) != row.get(parent):
                found.append(f"row {number} {child}: {row.get(child)} has two values of {parent}")
    return found


def _row(row: Mapping[str, object]) -> Iterator[str]:
    for name in (*MANDATORY, *RECOMMENDED):
        if row[name] is None and name not in _MAY_BE_NULL:
            yield f"{name}: null"
    for name, value in row.items():
        if isinstance(value, str) and (not value or value != value.strip()):
            yield f"{name}: {value!r} is empty or has leading or trailing spaces"
    for name, allowed in _ALLOWED.items():
        if name in row and row[name] not in allowed:
            yield f"{name}: {row[name]!r} is not one of {allowed}"
    for name in (*_COSTS, "PricingQuantity", "ConsumedQuantity"):
        value = row.get(name)
        if value is not None and not (isinstance(value, Decimal) and value.is_finite()):
            yield f"{name}: {value!r} is not a decimal"
    if not _CURRENCY.fullmatch(str(row["BillingCurrency"])):
        yield f"BillingCurrency: {row['BillingCurrency']!r} is not an ISO 4217 code"
    yield from _periods(row)
    yield from _service(row)
    for one, other in _TOGETHER:
        if one in row and (row[one] is None) != (row.get(other) is None):
            yield f"{other}: must be null if and only if {one} is"
    yield from _usage(row)


def _periods(row: Mapping[str, object]) -> Iterator[str]:
    for name in _TIMES:
        value = row[name]
        if not isinstance(value, datetime) or value.utcoffset() != timedelta(0):
            yield f"{name}: {value!r} is not a time in UTC"
            return
    for period in ("Billing", "Charge"):
        start, end = row[f"{period}PeriodStart"], row[f"{period}PeriodEnd"]
        if isinstance(start, datetime) and isinstance(end, datetime) and end <= start:
            yield f"{period}PeriodEnd: {end} is not after its start"


def _service(row: Mapping[str, object]) -> Iterator[str]:
    allowed = _SUBCATEGORIES.get(str(row["ServiceCategory"]))
    if allowed is None:
        yield f"ServiceCategory: {row['ServiceCategory']!r} is not used by this export"
    elif row["ServiceSubcategory"] not in allowed:
        yield f"ServiceSubcategory: {row['ServiceSubcategory']!r} is not one of {allowed}"


def _usage(row: Mapping[str, object]) -> Iterator[str]:
    """Rules for usage charges, and for the columns that only they may contain."""
    if row["ChargeCategory"] == "Usage" and row["ChargeClass"] is None:
        for name in ("PricingQuantity", "SkuId", "SkuPriceId"):
            if name in row and row[name] is None:
                yield f"{name}: null for usage"
    if row["ChargeCategory"] == "Purchase" and row["ChargeFrequency"] == "Usage-Based":
        yield "ChargeFrequency: a purchase is not usage-based"
    if row.get("ResourceName") is not None and row.get("ResourceName") == row.get("ResourceId"):
        yield "ResourceName: repeats ResourceId"
    tags = row.get("Tags")
    if tags is not None and not _is_key_value(str(tags)):
        yield f"Tags: {tags!r} is not a JSON object with scalar values"


def _is_key_value(text: str) -> bool:
    try:
        content = json.loads(text)
    except ValueError:
        return False
    return isinstance(content, dict) and all(
        value is None or isinstance(value, str | int | float | bool) for value in content.values()
    )
