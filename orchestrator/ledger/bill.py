"""Reads a cloud bill: an AWS Cost and Usage Report 2.0 or a FOCUS dataset in Parquet, from a file, a
directory or S3.

Only instance-hours are compared with leases: usage of a resource, measured in hours, of an instance type.
All other charges (storage, traffic, tax, credits, fees) are added up in `other`.

An instance-hour covered by a reservation or savings plan counts at its effective cost, if the bill states
it. A malformed bill is rejected with the file, row (from 1) and column.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.ledger.calendar import day_number
from orchestrator.ledger.errors import LedgerError

if TYPE_CHECKING:
    import duckdb

CUR, FOCUS = "CUR 2.0", "FOCUS"


@dataclass(frozen=True, slots=True)
class BilledDay:
    """What one resource was billed on one day: instance-hours of `sku`, without duplicate charges.

    `twice_hours` and `twice_amount` are the duplicate charges.
    """

    day: int
    resource: str
    sku: str
    hours: Decimal
    amount: Decimal
    currency: str
    twice_hours: Decimal
    twice_amount: Decimal


@dataclass(frozen=True, slots=True)
class Bill:
    """`files` maps file names to the SHA-256 of their content. `other` is what is not
    instance-hours, by currency.
    """

    kind: str
    files: Mapping[str, str]
    rows: int
    days: tuple[BilledDay, ...]
    other: Mapping[str, Decimal]


_HOURS = "('hrs', 'hours', 'hour', 'h')"

# For each normalised column the source column: first for CUR 2.0, then for FOCUS.
_CUR_NEEDED = (
    "line_item_usage_start_date",
    "line_item_usage_end_date",
    "line_item_resource_id",
    "line_item_line_item_type",
    "line_item_usage_amount",
    "line_item_unblended_cost",
    "line_item_currency_code",
    "product_instance_type",
    "pricing_unit",
)
_CUR = {
    "starts": "line_item_usage_start_date",
    "ends": "line_item_usage_end_date",
    "resource": "line_item_resource_id",
    "sku": "product_instance_type",
    "hours": "line_item_usage_amount",
    "amount": "line_item_unblended_cost",
    "currency": "line_item_currency_code",
}
_CUR_EFFECTIVE = {
    "SavingsPlanCoveredUsage": "savings_plan_savings_plan_effective_cost",
    "DiscountedUsage": "reservation_effective_cost",
}
_FOCUS_NEEDED = (
    "ChargePeriodStart",
    "ChargePeriodEnd",
    "ResourceId",
    "ChargeCategory",
    "ConsumedQuantity",
    "ConsumedUnit",
    "EffectiveCost",
    "BillingCurrency",
    "SkuMeter",
)
_FOCUS = {
    "starts": "ChargePeriodStart",
    "ends": "ChargePeriodEnd",
    "resource": "ResourceId",
    "sku": "SkuMeter",
    "hours": "ConsumedQuantity",
    "amount": "EffectiveCost",
    "currency": "BillingCurrency",
}


def read_bill(source: str) -> Bill:
    """Read the bill at `source`: a Parquet file, a directory of them, or `s3://bucket/prefix`.

    For S3, boto3 finds credentials and endpoint in its usual way. Raises LedgerError.
    """
    with _files(source) as files:
        import duckdb

        try:
            with duckdb.connect() as connection:
                return _read(connection, source, files)
        except duckdb.Error as error:
            raise LedgerError(source, str(error).splitlines()[0], "a bill in Parquet") from error


@contextmanager
def _files(source: str) -> Generator[list[Path]]:
    if source.startswith("s3://"):
        with tempfile.TemporaryDirectory() as folder:
            yield _download(source, Path(folder))
        return
    path = Path(source)
    found = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not found or not found[0].is_file():
        raise LedgerError("--cur", source, "a Parquet file, a directory of them, or s3://BUCKET/PREFIX")
    yield found


def _download(source: str, folder: Path) -> list[Path]:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = source.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    files: list[Path] = []
    try:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                key = item.get("Key", "")
                if key.endswith(".parquet"):
                    files.append(folder / key.replace("/", "_"))
                    client.download_file(bucket, key, str(files[-1]))
    except (BotoCoreError, ClientError, OSError) as error:
        raise LedgerError("--cur", source, "a readable bucket", str(error)) from error
    if not files:
        raise LedgerError("--cur", source, "a prefix with *.parquet files")
    return sorted(files)


def _read(connection: duckdb.DuckDBPyConnection, source: str, files: Sequence[Path]) -> Bill:
    names = [str(file) for file in files]
    scan = "read_parquet(?, union_by_name = true, filename = true, file_row_number = true)"
    described = connection.execute(f"DESCRIBE SELECT * FROM {scan}", [names]).fetchall()
    columns = {str(row[0]): str(row[1]) for row in described}
    kind = FOCUS if "ChargePeriodStart" in columns else CUR
    needed = _FOCUS_NEEDED if kind == FOCUS else _CUR_NEEDED
    missing = [name for name in needed if name not in columns]
    if missing:
        raise LedgerError(source, f"no column {', '.join(missing)}", f"{kind}: {', '.join(needed)}")
    if kind == FOCUS:
        select, origin = _focus_columns(columns), _FOCUS
    else:
        select, origin = _cur_columns(columns), _CUR
    connection.execute(f"CREATE TEMP TABLE bill AS SELECT {select} FROM {scan}", [names])
    _refuse_malformed(connection, origin)
    return Bill(
        kind,
        {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
        _one(connection, "SELECT count(*) FROM bill"),
        tuple(_days(connection)),
        dict(
            connection.execute("SELECT currency, sum(money) FROM bill WHERE NOT leased GROUP BY 1").fetchall()
        ),
    )


def _cur_columns(columns: Mapping[str, str]) -> str:
    cost = "line_item_unblended_cost"
    for kind, name in _CUR_EFFECTIVE.items():
        if name in columns:
            cost = f"CASE WHEN line_item_line_item_type = '{kind}' THEN {name} ELSE {cost} END"
    usage = ", ".join(f"'{kind}'" for kind in ("Usage", *_CUR_EFFECTIVE))
    leased = (
        f"line_item_line_item_type IN ({usage}) AND lower(pricing_unit) IN {_HOURS}"
        " AND coalesce(product_instance_type, '') <> ''"
    )
    return _normalised(columns, _CUR, cost, "product_instance_type", "line_item_line_item_type", leased)


def _focus_columns(columns: Mapping[str, str]) -> str:
    # SkuMeter is `BoxUsage:p5.48xlarge` (AWS) or a plain SKU.
    leased = f"ChargeCategory = 'Usage' AND lower(ConsumedUnit) IN {_HOURS}"
    sku = "regexp_extract(SkuMeter, '[^:]*$')"
    return _normalised(columns, _FOCUS, "EffectiveCost", sku, "ChargeCategory", leased)


def _normalised(
    columns: Mapping[str, str], origin: Mapping[str, str], cost: str, sku: str, charge: str, leased: str
) -> str:
    starts, ends = (_timestamp(origin[name], columns) for name in ("starts", "ends"))
    hours = origin["hours"]
    return f"""
        filename, file_row_number + 1 AS row, coalesce({leased}, false) AS leased,
        {starts} AS starts, CAST({origin["starts"]} AS VARCHAR) AS raw_starts,
        {ends} AS ends, CAST({origin["ends"]} AS VARCHAR) AS raw_ends,
        TRY_CAST({hours} AS DECIMAL(38, 12)) AS hours, CAST({hours} AS VARCHAR) AS raw_hours,
        TRY_CAST({cost} AS DECIMAL(38, 12)) AS money, CAST({cost} AS VARCHAR) AS raw_amount,
        regexp_extract({origin["resource"]}, '[^/]*$') AS resource, {sku} AS sku, {charge} AS charge,
        upper({origin["currency"]}) AS currency
    """


def _timestamp(name: str, columns: Mapping[str, str]) -> str:
    """SQL for the column as a timestamp in UTC.

    DuckDB can only convert timestamps with a time zone with an extension, so we go through microseconds.
    """
    if columns[name] == "TIMESTAMP WITH TIME ZONE":
        return f"make_timestamp(epoch_us({name}))"
    return f"TRY_CAST({name} AS TIMESTAMP)"


_CHECKS = (
    ("starts", "leased AND starts IS NULL", "raw_starts", "a time"),
    ("ends", "leased AND (ends IS NULL OR ends <= starts)", "raw_ends", "a time after the start"),
    (
        "ends",
        "leased AND ends > date_trunc('day', starts) + INTERVAL 1 DAY",
        "raw_ends",
        "within the day: hourly or daily granularity",
    ),
    ("resource", "leased AND coalesce(resource, '') = ''", "resource", "the id of a resource"),
    ("hours", "leased AND coalesce(hours, -1) < 0", "raw_hours", "0 hours or more"),
    ("amount", "money IS NULL AND (leased OR raw_amount IS NOT NULL)", "raw_amount", "an amount of money"),
    ("currency", "NOT regexp_matches(coalesce(currency, ''), '^[A-Z]{3}$')", "currency", "a currency code"),
)


def _refuse_malformed(connection: duckdb.DuckDBPyConnection, origin: Mapping[str, str]) -> None:
    for column, wrong, shown, allowed in _CHECKS:
        query = f"SELECT filename, row, {shown} FROM bill WHERE {wrong} ORDER BY filename, row LIMIT 1"
        found = connection.execute(query).fetchone()
        if found is not None:
            file, row, value = found
            key = f"{Path(file).name} row {row} {origin[column]}"
            raise LedgerError(key, "nothing" if value in (None, "") else str(value), allowed)


def _days(connection: duckdb.DuckDBPyConnection) -> Generator[BilledDay]:
    """Billed days by resource and SKU.

    Where the lines of an interval add up to more hours than it has, it was charged more than once; all but
    one of its identical lines are separated as duplicates.
    """
    query = """
        WITH ranked AS (
            SELECT *, row_number() OVER same AS copy, sum(hours) OVER interval_ AS charged,
                   epoch(ends - starts) / 3600.0 AS length
            FROM bill WHERE leased
            WINDOW same AS (PARTITION BY resource, sku, starts, ends, charge, hours, money, currency
                            ORDER BY filename, row),
                   interval_ AS (PARTITION BY resource, sku, starts, ends)
        ), marked AS (SELECT *, copy > 1 AND charged > length * 1.000001 AS twice FROM ranked)
        SELECT CAST(starts AS DATE) AS day, resource, sku, currency,
               coalesce(sum(hours) FILTER (NOT twice), 0), coalesce(sum(money) FILTER (NOT twice), 0),
               coalesce(sum(hours) FILTER (twice), 0), coalesce(sum(money) FILTER (twice), 0)
        FROM marked GROUP BY ALL ORDER BY ALL
    """
    for day, resource, sku, currency, hours, amount, twice, twice_amount in connection.execute(
        query
    ).fetchall():
        number = day_number(day if isinstance(day, date) else date.fromisoformat(str(day)))
        yield BilledDay(number, resource, sku, hours, amount, currency, twice, twice_amount)


def _one(connection: duckdb.DuckDBPyConnection, query: str) -> Any:  # noqa: ANN401
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


def plain_resource(name: str) -> str:
    """A resource id without the path of its ARN.

    >>> plain_resource("arn:aws:ec2:us-east-1:123456789012:instance/i-0abc")
    'i-0abc'
    """
    found = re.search(r"[^/]*$", name)
    return found[0] if found else name
