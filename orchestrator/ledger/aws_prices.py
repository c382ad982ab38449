"""Converts AWS list prices, from the Pricing API or from its JSON in a file, into a price book.

It includes EC2 instance-hours for Linux on shared tenancy, without licence or capacity reservation:
on-demand prices and, where available, the standard one-year reservation without upfront payment. The SKU
is the instance type. The price of an instance is divided by its number of accelerators, or by its vCPUs
if it has none.

The Pricing API only returns prices that are effective now. Keep older price books for earlier days.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

from orchestrator.ledger.errors import PriceBookError

SERVICE = "AmazonEC2"
WANTED = {
    "operatingSystem": "Linux",
    "tenancy": "Shared",
    "preInstalledSw": "NA",
    "capacitystatus": "Used",
    "licenseModel": "No License required",
}
RESERVED = {"LeaseContractLength": "1yr", "OfferingClass": "standard", "PurchaseOption": "No Upfront"}


def read_products(path: Path) -> list[Mapping[str, Any]]:
    """Read the products in a file of the Pricing API: the response of `get-products`, or a list of products.

    Raises PriceBookError, which names the entry.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PriceBookError(str(path), str(error), "JSON of the AWS Pricing API (get-products)") from error
    listed = content.get("PriceList") if isinstance(content, dict) else content
    if not isinstance(listed, list):
        raise PriceBookError(
            str(path), type(content).__name__, "an object with PriceList, or a list of products"
        )
    return [_product(entry, f"{path}: PriceList[{row}]") for row, entry in enumerate(listed)]


def fetch_products(region: str, instance_types: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Query the Pricing API for instance types in a region, with boto3's credentials."""
    import boto3

    pages = boto3.client("pricing", region_name="us-east-1").get_paginator("get_products")
    for instance_type in instance_types:
        wanted = {**WANTED, "regionCode": region, "instanceType": instance_type}
        filters = [{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in wanted.items()]
        for page in pages.paginate(ServiceCode=SERVICE, Filters=filters):  # type: ignore[arg-type]
            for row, entry in enumerate(page["PriceList"]):
                yield _product(entry, f"pricing API: {instance_type}[{row}]")


def price_book_of(products: Iterable[Mapping[str, Any]], name: str, retrieved: date) -> dict[str, Any]:
    """The content of a price book, as accepted by `PriceBook.parse`.

    Products of other kinds are skipped. Raises PriceBookError if no product is usable.
    """
    prices = [price for product in products for price in _prices(product, retrieved)]
    if not prices:
        wanted = ", ".join(f"{name}={value}" for name, value in WANTED.items())
        raise PriceBookError("PriceList", "no instance-hour", f"EC2 products with {wanted}")
    prices.sort(key=lambda price: (price["sku"], price["region"], price["commitment"]))
    regions = sorted({price["region"] for price in prices})
    return {
        "name": name,
        "currency": "USD",
        "region": regions[0],
        "commitment": "on_demand",
        "prices": prices,
        "rates": [],
    }


def _product(entry: object, where: str) -> Mapping[str, Any]:
    allowed = "a product with attributes and terms"
    try:
        product: Any = json.loads(entry) if isinstance(entry, str) else entry
        attributes = product["product"]["attributes"]
    except (ValueError, KeyError, TypeError) as error:
        raise PriceBookError(where, str(entry)[:80], allowed) from error
    if not isinstance(attributes, dict):
        raise PriceBookError(where, str(attributes)[:80], allowed)
    return product


def _prices(product: Mapping[str, Any], retrieved: date) -> Iterator[dict[str, Any]]:
    attributes = product["product"]["attributes"]
    if any(attributes.get(name, value) != value for name, value in WANTED.items()):
        return
    if "instanceType" not in attributes or "regionCode" not in attributes:
        return
    gpus, sku = int(attributes.get("gpu") or 0), product["product"].get("sku", "unknown SKU")
    shared = {
        "sku": attributes["instanceType"],
        "resource": "gpu" if gpus else "cpu",
        "region": attributes["regionCode"],
        "accelerators": gpus or int(attributes["vcpu"]),
        "currency": "USD",
        "to": None,
        "retrieved": retrieved.isoformat(),
    }
    for kind, commitment in (("OnDemand", "on_demand"), ("Reserved", "reserved")):
        for term in product.get("terms", {}).get(kind, {}).values():
            if kind == "Reserved" and term.get("termAttributes") != RESERVED:
                continue
            for dimension in term["priceDimensions"].values():
                amount = dimension.get("pricePerUnit", {}).get("USD")
                if dimension.get("unit") == "Hrs" and amount is not None and Decimal(amount) > 0:
                    yield {
                        **shared,
                        "commitment": commitment,
                        "amount": f"{Decimal(amount).normalize():f}",
                        "from": term["effectiveDate"][:10],
                        "source": f"AWS Pricing API, {sku}: {dimension['description']}",
                    }
