"""A synthetic bill against a ledger: exactly the injected discrepancies are found."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.ledger.bill import Bill, read_bill
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.events import Event, LeaseClosed, LeaseOpened, RunDeclared
from orchestrator.ledger.headline import headline
from orchestrator.ledger.imports import slurm
from orchestrator.ledger.imports.statements import take
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.reconcile import (
    Reconciliation,
    Tolerances,
    read_nodes,
    read_signed,
    reconcile,
    sign,
    unexplained_of,
)

START = datetime(2026, 10, 3, tzinfo=UTC)
DAYS, NODES = 5, 6
SKU, PER_HOUR = "p5.48xlarge", Decimal("55.04")
PRICES: dict[str, Any] = {
    "name": "test",
    "currency": "USD",
    "region": "us-east-1",
    "commitment": "on_demand",
    "prices": [
        {
            "sku": sku,
            "resource": "gpu",
            "region": "us-east-1",
            "commitment": "on_demand",
            "amount": amount,
            "accelerators": 8,
            "currency": "USD",
            "from": "2020-01-01",
            "to": None,
            "source": "made up",
            "retrieved": "2026-01-01",
        }
        for sku, amount in ((SKU, str(PER_HOUR)), ("p4d.24xlarge", "21.96"))
    ],
}

Row = dict[str, Any]
Seed = tuple[str, str, str]
"""Kind, day, resource."""


def ns(at: datetime) -> int:
    return int(at.timestamp()) * 10**9


def day(number: int) -> str:
    return (START + timedelta(days=number)).date().isoformat()


def leases(node: str, start: datetime, end: datetime, run: str = "rl", slots: int = 8) -> list[Event]:
    found: list[Event] = [RunDeclared(f"d-{run}", 0, run, 1, "j", "final", "", "", "", "", "r1", "")]
    for slot in range(slots):
        name = f"{node}/{ns(start)}/{slot}"
        opened = LeaseOpened(f"o-{name}", ns(start), name, run, 1, "gpu", SKU, node, "", slot)
        found += [opened, LeaseClosed(f"c-{name}", ns(end), name, "released")]
    return found


def usage(node: str, start: datetime, hours: float = 1.0, sku: str = SKU) -> Row:
    return {
        "start": start,
        "end": start + timedelta(hours=1),
        "resource": f"arn:aws:ec2:us-east-1:123:instance/{node}",
        "type": "Usage",
        "sku": sku,
        "hours": hours,
        "unit": "Hrs",
        "cost": float(PER_HOUR) * hours,
        "currency": "USD",
    }


def seeded(random_: random.Random) -> tuple[list[Row], Ledger, set[Seed]]:
    """The bill and the leases of a month that match except for ten discrepancies
    of six kinds, at random places.
    """
    ledger = Ledger.in_memory(PRICES)
    nodes = [f"i-{number:04x}" for number in range(NODES)]
    places = random_.sample([(node, number) for node in nodes for number in range(DAYS)], 8)
    (gone_1, gone_2, short_1, short_2, dear_1, dear_2, other, twice) = places
    rows: list[Row] = []
    for node in nodes:
        # Leases begin some minutes after the instance: within the tolerance.
        ledger.book(leases(node, START + timedelta(minutes=4), START + timedelta(days=DAYS)))
        for hour in range(DAYS * 24):
            place = (node, hour // 24)
            row = usage(node, START + timedelta(hours=hour))
            if place in (gone_1, gone_2) or (place in (short_1, short_2) and hour % 24 < 5):
                continue
            if place in (dear_1, dear_2):
                row["cost"] *= 1.1
            if place == other:
                row["sku"] = "p4d.24xlarge"
            rows.append(row)
            if place == twice and hour % 24 in (3, 17):
                rows.append(dict(row))
    strays = [("i-stray", random_.randrange(DAYS)), ("i-lost", random_.randrange(DAYS))]
    for node, number in strays:
        rows += [usage(node, START + timedelta(days=number, hours=hour)) for hour in (2, 3)]
    storage = {**usage("vol-1", START), "resource": "vol-1", "unit": "GB-Mo", "sku": None, "cost": 12.5}
    tax = {**usage("", START), "resource": None, "type": "Tax", "hours": None, "cost": 100.25}
    rows += [storage, tax]
    random_.shuffle(rows)
    kinds = [("leased_not_billed", (gone_1, gone_2)), ("hours_differ", (short_1, short_2))]
    kinds += [("price_differs", (dear_1, dear_2)), ("sku_differs", (other,)), ("duplicate_charge", (twice,))]
    kinds += [("billed_not_leased", tuple(strays))]
    return rows, ledger, {(kind, day(number), node) for kind, found in kinds for node, number in found}


def write_cur(path: Path, rows: list[Row]) -> Path:
    names = {
        "start": "line_item_usage_start_date",
        "end": "line_item_usage_end_date",
        "resource": "line_item_resource_id",
        "type": "line_item_line_item_type",
        "sku": "product_instance_type",
        "hours": "line_item_usage_amount",
        "unit": "pricing_unit",
        "cost": "line_item_unblended_cost",
        "currency": "line_item_currency_code",
    }
    pq.write_table(
        pa.Table.from_pylist([{names[key]: value for key, value in row.items()} for row in rows]), path
    )
    return path


def write_focus(path: Path, rows: list[Row]) -> Path:
    focus = [
        {
            "ChargePeriodStart": row["start"].strftime("%Y-%m-%dT%H:%M:%SZ"),
            "ChargePeriodEnd": row["end"].strftime("%Y-%m-%dT%H:%M:%SZ"),
            "ResourceId": row["resource"],
            "ChargeCategory": row["type"],
            "ConsumedQuantity": row["hours"],
            "ConsumedUnit": {"Hrs": "Hours"}.get(row["unit"], row["unit"]),
            "EffectiveCost": Decimal(str(round(row["cost"], 6))),
            "BillingCurrency": row["currency"],
            "SkuMeter": f"BoxUsage:{row['sku']}",
        }
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(focus), path)
    return path


def found(result: Reconciliation) -> set[Seed]:
    assert len({(one.kind, one.day, one.resource) for one in result.findings}) == len(result.findings)
    return {(one.kind.value, one.day, one.resource) for one in result.findings}


@pytest.mark.parametrize("write", [write_cur, write_focus])
@pytest.mark.parametrize("seed", range(4))
def test_exactly_the_ten_injected_discrepancies_are_found(
    tmp_path: Path, seed: int, write: Callable[[Path, list[Row]], Path]
) -> None:
    rows, ledger, expected = seeded(random.Random(seed))
    assert (len(expected), len({kind for kind, _, _ in expected})) == (10, 6)
    result = reconcile(ledger, read_bill(str(write(tmp_path / "bill.parquet", rows))), Tolerances())
    assert found(result) == expected
    assert result.matched.resource_days == NODES * DAYS - 8
    assert result.other == {"USD": Decimal("112.75")}
    # Two strays of 2 hours, and two hours that were charged twice.
    assert result.unexplained == 6 * PER_HOUR
    assert not result.clean


def day_bill(tmp_path: Path, *rows: Row, name: str = "bill.parquet") -> Bill:
    return read_bill(str(write_cur(tmp_path / name, list(rows))))


def one_day(node: str = "i-1") -> list[Row]:
    return [usage(node, START + timedelta(hours=hour)) for hour in range(24)]


def test_a_bill_that_agrees_is_clean(tmp_path: Path) -> None:
    ledger = Ledger.in_memory(PRICES)
    ledger.book(leases("i-1", START, START + timedelta(days=1)))
    result = reconcile(ledger, day_bill(tmp_path, *one_day()), Tolerances())
    assert result.clean
    assert (result.matched.accelerator_hours, result.matched.leased_amount) == (192, 24 * PER_HOUR)
    assert result.billed_amount == result.leased_amount


def test_a_half_leased_instance_differs_by_the_other_half(tmp_path: Path) -> None:
    ledger = Ledger.in_memory(PRICES)
    ledger.book(leases("i-1", START, START + timedelta(days=1), slots=4))
    [finding] = reconcile(ledger, day_bill(tmp_path, *one_day()), Tolerances()).findings
    assert (finding.kind, finding.billed_hours, finding.leased_hours) == ("hours_differ", 192, 96)
    assert finding.amount == 12 * PER_HOUR


def test_an_hour_split_between_two_charges_is_not_charged_twice(tmp_path: Path) -> None:
    ledger = Ledger.in_memory(PRICES)
    ledger.book(leases("i-1", START, START + timedelta(days=1)))
    halves = [row for row in one_day() for _ in range(2)]
    rows = [{**row, "hours": 0.5, "cost": float(PER_HOUR) / 2} for row in halves]
    assert reconcile(ledger, day_bill(tmp_path, *rows), Tolerances()).clean


def test_differences_within_the_tolerances_are_ignored(tmp_path: Path) -> None:
    ledger = Ledger.in_memory(PRICES)
    ledger.book(leases("i-1", START + timedelta(minutes=30), START + timedelta(days=1)))
    bill = day_bill(tmp_path, *one_day())
    assert found(reconcile(ledger, bill, Tolerances(hours=Fraction(1, 2)))) == set()
    assert {kind for kind, _, _ in found(reconcile(ledger, bill, Tolerances(hours=Fraction(49, 100))))} == {
        "hours_differ"
    }


def test_nodes_can_be_mapped_to_names_on_the_bill(tmp_path: Path) -> None:
    ledger = Ledger.in_memory(PRICES)
    ledger.book(leases("ray-node-7", START, START + timedelta(days=1)))
    names = tmp_path / "nodes.csv"
    names.write_text("node,resource\nray-node-7,arn:aws:ec2:us-east-1:123:instance/i-1\n")
    bill = day_bill(tmp_path, *one_day())
    assert len(reconcile(ledger, bill, Tolerances()).findings) == 2
    assert reconcile(ledger, bill, Tolerances(), dict(read_nodes(names))).clean
    names.write_text("ray-node-7\n")
    with pytest.raises(LedgerError, match=r"nodes\.csv:1"):
        dict(read_nodes(names))


def test_leases_without_a_node_are_added_up_separately(tmp_path: Path) -> None:
    ledger = Ledger.in_memory(PRICES)
    ledger.book(leases("i-1", START, START + timedelta(days=1)))
    ledger.book(leases("", START, START + timedelta(hours=1), run="elsewhere", slots=2))
    result = reconcile(ledger, day_bill(tmp_path, *one_day()), Tolerances())
    assert result.clean
    assert (result.without_node_hours, result.without_node_amount) == (2, PER_HOUR / 4)


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ({"resource": None}, "bill.parquet row 2 line_item_resource_id"),
        ({"hours": -1.0}, "bill.parquet row 2 line_item_usage_amount"),
        ({"hours": None}, "bill.parquet row 2 line_item_usage_amount"),
        ({"cost": None}, "bill.parquet row 2 line_item_unblended_cost"),
        ({"start": None}, "bill.parquet row 2 line_item_usage_start_date"),
        ({"end": START}, "bill.parquet row 2 line_item_usage_end_date"),
        ({"end": START + timedelta(days=30)}, "bill.parquet row 2 line_item_usage_end_date"),
        ({"currency": "dollars"}, "bill.parquet row 2 line_item_currency_code"),
        ({"currency": "CHF"}, "currency"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, broken: Row, named: str) -> None:
    rows = one_day()[:3]
    rows[1] = {**rows[1], **broken}
    with pytest.raises(LedgerError) as refusal:
        reconcile(Ledger.in_memory(PRICES), day_bill(tmp_path, *rows), Tolerances())
    assert refusal.value.key == named


def test_a_file_that_is_not_a_bill_is_rejected_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("not Parquet")
    pq.write_table(pa.table({"line_item_usage_amount": [1.0]}), tmp_path / "columns.parquet")
    for name in ("missing.parquet", "text.parquet", "columns.parquet", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(LedgerError) as refusal:
            read_bill(str(tmp_path / name))
        assert name in str(refusal.value)
    storage = {**usage("v", START), "unit": "GB-Mo"}
    with pytest.raises(LedgerError, match="no instance-hours"):
        reconcile(Ledger.in_memory(PRICES), day_bill(tmp_path, storage), Tolerances())


def test_all_files_of_a_folder_form_one_bill(tmp_path: Path) -> None:
    rows = one_day()
    (tmp_path / "part").mkdir()
    write_cur(tmp_path / "a.parquet", rows[:7])
    write_cur(tmp_path / "part" / "b.parquet", rows[7:])
    bill = read_bill(str(tmp_path))
    assert (bill.rows, sorted(bill.files)) == (24, ["a.parquet", "b.parquet"])
    assert [line.hours for line in bill.days] == [24]


def test_usage_covered_by_reservations_counts_at_its_effective_cost(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(
        [
            {
                "line_item_usage_start_date": START,
                "line_item_usage_end_date": START + timedelta(hours=1),
                "line_item_resource_id": "i-1",
                "line_item_line_item_type": kind,
                "product_instance_type": SKU,
                "line_item_usage_amount": 1.0,
                "pricing_unit": "Hrs",
                "line_item_unblended_cost": 50.0,
                "line_item_currency_code": "USD",
                "savings_plan_savings_plan_effective_cost": 30.0,
                "reservation_effective_cost": 20.0,
            }
            for kind in ("Usage", "SavingsPlanCoveredUsage", "DiscountedUsage", "SavingsPlanNegation")
        ]
    )
    pq.write_table(table, tmp_path / "bill.parquet")
    bill = read_bill(str(tmp_path / "bill.parquet"))
    assert [line.amount for line in bill.days] == [100]
    assert bill.other == {"USD": 50}


def test_a_signed_result_detects_changes_and_feeds_the_headline(tmp_path: Path) -> None:
    ledger = Ledger.in_memory(PRICES)
    ledger.book(leases("i-1", START, START + timedelta(hours=18)))
    other = leases("i-1", START + timedelta(hours=18), START + timedelta(days=1), run="other")
    ledger.book([event for event in other if not isinstance(event, RunDeclared)])
    bill = day_bill(tmp_path, *one_day(), *one_day("i-stray")[:4])
    result = reconcile(ledger, bill, Tolerances())
    file = tmp_path / "signed.json"
    file.write_text(json.dumps(sign(result.to_dict(), "Ada", "2026-11-24", "a forgotten instance")))
    assert read_signed(file)["signed"] == {"by": "Ada", "at": "2026-11-24", "note": "a forgotten instance"}
    account = headline(ledger, "r1", unexplained_of(ledger, "r1", file))
    assert account.lines[-1].amount == 4 * PER_HOUR * 3 / 4
    assert account.full.amount == account.headline.amount + 3 * PER_HOUR
    file.write_text(file.read_text().replace('"220.160000"', '"0.000000"'))
    with pytest.raises(LedgerError, match="changed after signing"):
        read_signed(file)


@pytest.mark.parametrize(("hours_without", "left"), [(4, 0), (1, 3)])
def test_usage_without_a_node_is_not_counted_again_as_unexplained(
    hours_without: int, left: int, tmp_path: Path
) -> None:
    ledger = Ledger.in_memory(PRICES)
    ledger.book(leases("", START, START + timedelta(hours=hours_without)))
    result = reconcile(ledger, day_bill(tmp_path, *one_day("i-1")[:4]), Tolerances())
    assert result.unexplained == 4 * PER_HOUR
    file = tmp_path / "signed.json"
    file.write_text(json.dumps(sign(result.to_dict(), "Ada", "2026-11-24", "which node?")))
    line = unexplained_of(ledger, "r1", file)
    assert line.amount == left * PER_HOUR
    assert "of usage without a node" in line.reason
    assert headline(ledger, "r1", line).full.amount == 4 * PER_HOUR


def test_a_slurm_job_on_two_nodes_is_found_on_the_bill_and_counts_once(tmp_path: Path) -> None:
    ledger = Ledger.in_memory(PRICES)
    sacct = tmp_path / "sacct.txt"
    sacct.write_text(
        "JobID|JobName|WCKey|State|Start|End|AllocTRES|NodeList\n"
        "1|pre|r1|COMPLETED|2026-10-03T00:00:00|2026-10-04T00:00:00|gres/gpu=16|i-[01-02]\n"
    )
    take(ledger, slurm.read(sacct, slurm.SlurmNames(skus={"gpu": SKU})), 0)
    bill = day_bill(tmp_path, *one_day("i-01"), *one_day("i-02"))
    result = reconcile(ledger, bill, Tolerances())
    assert result.clean
    assert (result.without_node_hours, result.unexplained) == (0, 0)
    assert result.matched.billed_amount == result.billed_amount == 48 * PER_HOUR
