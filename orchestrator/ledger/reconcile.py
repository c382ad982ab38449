"""Compares a cloud bill with the ledger: per day and resource, what was billed and what was leased.

A resource is the node of a lease, under its name on the bill. Both sides are compared in accelerator-hours;
the price book says how many accelerators an instance of a SKU has. Leases without a node cannot be found on
a bill, and are added up as `without_node`.

    billed_not_leased   the resource is on the bill of that day, but not leased
    leased_not_billed   the resource is leased, but not on the bill
    hours_differ        it is on both, with a difference above the tolerance
    price_differs       the billed price of an accelerator-hour differs from the price book
    sku_differs         the bill has another instance type
    duplicate_charge    the bill has the same interval more than once
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

from orchestrator.ledger.bill import Bill, BilledDay, plain_resource
from orchestrator.ledger.calendar import date_of
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.headline import UNEXPLAINED, WORK, HeadlineLine
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.money import hours, rounded
from orchestrator.ledger.pricing import Pricer

SCHEMA = 1
PLACES = 6


class DiscrepancyKind(StrEnum):
    """Kinds of discrepancies between bill and ledger, for a resource on a day."""

    BILLED_NOT_LEASED = "billed_not_leased"
    LEASED_NOT_BILLED = "leased_not_billed"
    HOURS_DIFFER = "hours_differ"
    PRICE_DIFFERS = "price_differs"
    SKU_DIFFERS = "sku_differs"
    DUPLICATE_CHARGE = "duplicate_charge"


@dataclass(frozen=True, slots=True)
class Tolerances:
    """`hours` per accelerator, day and resource, because instances are also billed while they start and stop.

    `price` as a share.
    """

    hours: Fraction = Fraction(1, 10)
    price: Fraction = Fraction(5, 1000)


@dataclass(frozen=True, slots=True)
class Finding:
    """One discrepancy, in accelerator-hours and money in the currency of the ledger. `amount` is the
    difference in cost, positive if the bill is higher.
    """

    kind: DiscrepancyKind
    day: str
    resource: str
    billed_hours: Decimal
    leased_hours: Decimal
    billed_amount: Decimal
    leased_amount: Decimal
    amount: Decimal
    detail: str


@dataclass(frozen=True, slots=True)
class Matched:
    """The resources and days on which both sides agree."""

    resource_days: int
    accelerator_hours: Decimal
    billed_amount: Decimal
    leased_amount: Decimal


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """`unexplained` is billed instance time that no lease explains: not leased at all, billed for longer than
    leased, or charged twice. `other` contains charges that are not instance-hours.
    """

    currency: str
    first_day: str
    last_day: str
    bill_kind: str
    bill_files: Mapping[str, str]
    bill_rows: int
    tolerances: Tolerances
    matched: Matched
    findings: tuple[Finding, ...]
    billed_amount: Decimal
    leased_amount: Decimal
    unexplained: Decimal
    other: Mapping[str, Decimal]
    without_node_hours: Decimal
    without_node_amount: Decimal

    @property
    def clean(self) -> bool:
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; hours and amounts are decimal strings."""
        counts = {kind.value: 0 for kind in DiscrepancyKind}
        for finding in self.findings:
            counts[finding.kind] += 1
        return {"schema": SCHEMA, "clean": self.clean, "counts": counts, **_plain(asdict(self))}


@dataclass(slots=True)
class _Leased:
    """The exact time and cost of one SKU on one resource and day."""

    ns: int = 0
    amount: Fraction = Fraction(0)


Place = tuple[int, str]
"""A day and a resource."""


def reconcile(
    ledger: Ledger,
    bill: Bill,
    tolerances: Tolerances,
    nodes: Mapping[str, str] | None = None,
    as_of_ns: int | None = None,
) -> Reconciliation:
    """Compare both sides over the days of the bill. `nodes` maps a node to the name of its resource on the
    bill, where they differ.

    Raises LedgerError for a bill without instance-hours, a lease without a price, or a currency without
    an exchange rate.
    """
    if not bill.days:
        raise LedgerError("--cur", "no instance-hours", "a bill with usage in hours of an instance type")
    first, last = min(line.day for line in bill.days), max(line.day for line in bill.days)
    pricer = ledger.prices.pricer(as_of_ns)
    leased, without_node = _leases(ledger, pricer, first, last, nodes or {}, as_of_ns)
    billed: dict[Place, list[BilledDay]] = {}
    for line in bill.days:
        billed.setdefault((line.day, line.resource), []).append(line)
    comparison = _Comparison(pricer, tolerances)
    for place in sorted(billed.keys() | leased.keys()):
        comparison.compare(place, billed.get(place, []), leased.get(place, {}))
    return Reconciliation(
        pricer.table.currency,
        date_of(first).isoformat(),
        date_of(last).isoformat(),
        bill.kind,
        bill.files,
        bill.rows,
        tolerances,
        comparison.matched(),
        tuple(comparison.findings),
        rounded(comparison.billed, PLACES),
        rounded(comparison.leased, PLACES),
        rounded(comparison.unexplained, PLACES),
        bill.other,
        rounded(hours(without_node.ns), PLACES),
        rounded(without_node.amount, PLACES),
    )


def _leases(
    ledger: Ledger, pricer: Pricer, first: int, last: int, nodes: Mapping[str, str], as_of_ns: int | None
) -> tuple[dict[Place, dict[str, _Leased]], _Leased]:
    leased: dict[Place, dict[str, _Leased]] = {}
    without_node = _Leased()
    for line in ledger.counted(as_of_ns):
        key = line.key
        if not first <= key.day <= last:
            continue
        found = without_node
        if key.node:
            place = (key.day, plain_resource(nodes.get(key.node, key.node)))
            found = leased.setdefault(place, {}).setdefault(key.sku, _Leased())
        found.ns += line.ns
        found.amount += hours(line.ns) * pricer.unit_price(key)
    return leased, without_node


class _Comparison:
    """Adds up what agrees and collects the discrepancies."""

    def __init__(self, pricer: Pricer, tolerances: Tolerances) -> None:
        self._pricer, self._tolerances = pricer, tolerances
        self.findings: list[Finding] = []
        self.billed = self.leased = self.unexplained = Fraction(0)
        self._agreed: list[tuple[Fraction, Fraction, Fraction]] = []

    def matched(self) -> Matched:
        held = sum((place[0] for place in self._agreed), Fraction(0))
        charged = sum((place[1] for place in self._agreed), Fraction(0))
        owed = sum((place[2] for place in self._agreed), Fraction(0))
        return Matched(
            len(self._agreed), rounded(held, PLACES), rounded(charged, PLACES), rounded(owed, PLACES)
        )

    def compare(self, place: Place, billed: list[BilledDay], leased: Mapping[str, _Leased]) -> None:
        """Compare one resource on one day."""
        money = [self._convert(line.amount, line) for line in billed]
        charged = sum(money, Fraction(0))
        owed = sum((part.amount for part in leased.values()), Fraction(0))
        held = hours(sum(part.ns for part in leased.values()))
        self.billed, self.leased = self.billed + charged, self.leased + owed
        before = len(self.findings)
        for line in billed:
            if line.twice_hours:
                self._twice(place, line)
        paid = sum((Fraction(line.hours) * self._accelerators(line.sku) for line in billed), Fraction(0))
        side = _Sides(place, paid, held, charged, owed)
        if not leased and any(line.hours for line in billed):
            self.unexplained += charged
            detail = f"{_skus(billed)}: not leased"
            self._add(DiscrepancyKind.BILLED_NOT_LEASED, side, charged, detail)
        elif leased and not billed:
            self._add(
                DiscrepancyKind.LEASED_NOT_BILLED,
                side,
                -owed,
                f"{', '.join(sorted(leased))}: not on the bill",
            )
        elif {line.sku for line in billed} != set(leased):
            detail = f"billed as {_skus(billed)}, leased as {', '.join(sorted(leased))}"
            self._add(DiscrepancyKind.SKU_DIFFERS, side, charged - owed, detail)
        elif leased:
            self._both(side, billed[0].sku)
        if len(self.findings) == before:
            self._agreed.append((held, charged, owed))

    def _both(self, side: _Sides, sku: str) -> None:
        difference = side.paid - side.held
        accelerators = self._accelerators(sku)
        if abs(difference) > self._tolerances.hours * accelerators:
            per_hour = side.charged / side.paid if side.paid else side.owed / side.held
            self.unexplained += max(Fraction(0), difference * per_hour)
            more = "billed for longer than leased" if difference > 0 else "leased for longer than billed"
            self._add(DiscrepancyKind.HOURS_DIFFER, side, difference * per_hour, f"{sku}: {more}")
        if side.paid and side.held:
            billed, booked = side.charged / side.paid, side.owed / side.held
            if abs(billed - booked) > self._tolerances.price * booked:
                detail = f"{sku}: {_short(billed)} per accelerator-hour, {_short(booked)} in the price book"
                self._add(DiscrepancyKind.PRICE_DIFFERS, side, (billed - booked) * side.paid, detail)

    def _twice(self, place: Place, line: BilledDay) -> None:
        amount = self._convert(line.twice_amount, line)
        self.billed += amount
        self.unexplained += amount
        charged = Fraction(line.twice_hours) * self._accelerators(line.sku)
        side = _Sides(place, charged, Fraction(0), amount, Fraction(0))
        detail = f"{line.sku}: {line.twice_hours.normalize():f} instance-hours charged more than once"
        self._add(DiscrepancyKind.DUPLICATE_CHARGE, side, amount, detail)

    def _add(self, kind: DiscrepancyKind, side: _Sides, amount: Fraction, detail: str) -> None:
        day, resource = side.place
        self.findings.append(
            Finding(
                kind,
                date_of(day).isoformat(),
                resource,
                billed_hours=rounded(side.paid, PLACES),
                leased_hours=rounded(side.held, PLACES),
                billed_amount=rounded(side.charged, PLACES),
                leased_amount=rounded(side.owed, PLACES),
                amount=rounded(amount, PLACES),
                detail=detail,
            )
        )

    def _convert(self, amount: Decimal, line: BilledDay) -> Fraction:
        return self._pricer.table.convert(Fraction(amount), line.currency, line.day)

    def _accelerators(self, sku: str) -> int:
        """The number of accelerators of an instance: 1 if no price book knows it."""
        for book in self._pricer.table.books:
            if sku in book.skus():
                return book.accelerators(sku)
        return 1


@dataclass(frozen=True, slots=True)
class _Sides:
    """Accelerator-hours and money of both sides at a place."""

    place: Place
    paid: Fraction
    held: Fraction
    charged: Fraction
    owed: Fraction


def sign(result: Mapping[str, Any], by: str, at: str, note: str) -> dict[str, Any]:
    """Add who accepts the result, and a digest over the whole document."""
    document = {**result, "signed": {"by": by, "at": at, "note": note}}
    return {**document, "sha256": _digest(document)}


def read_signed(path: Path) -> dict[str, Any]:
    """Read a signed result. Raises LedgerError if it is not one, or was changed after it was signed."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        stated = document.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise LedgerError(str(path), str(error), "a file written by cost reconcile --sign-off") from error
    if stated != _digest(document):
        raise LedgerError(
            f"{path} sha256", stated, "the digest of its content", "it was changed after signing"
        )
    return document


def unexplained_of(ledger: Ledger, pipeline: str, path: Path) -> HeadlineLine:
    """The pipeline's share of the unexplained amount of a signed reconciliation, in proportion to its share
    of all usage on those days.

    Usage without a node already counts in the pipelines, and may be exactly what is on the bill but not
    explained by leases. That amount is therefore subtracted, so that nothing counts twice.

    Raises LedgerError if the result was changed or has another currency.
    """
    from orchestrator.ledger.calendar import parse_period

    document = read_signed(path)
    first, last = parse_period(document["first_day"])[0], parse_period(document["last_day"])[1]
    own = ledger.report_by(["kind"], first, last, name=pipeline)
    everything = ledger.report_by(["kind"], first, last)
    if document["currency"] != own.currency:
        raise LedgerError(f"{path} currency", document["currency"], own.currency)
    placeless = Fraction(document["without_node_amount"])
    unexplained = max(Fraction(0), Fraction(document["unexplained"]) - placeless)
    share = Fraction(own.amount) / Fraction(everything.amount) if everything.amount else Fraction(0)
    reason = (
        f"{document['unexplained']} {own.currency} billed from {document['first_day']} to"
        f" {document['last_day']} that no lease explains, in proportion to usage"
    )
    if placeless:
        reason += f"; less {document['without_node_amount']} {own.currency} of usage without a node"
    return HeadlineLine("", "", WORK, None, rounded(unexplained * share, PLACES), UNEXPLAINED, reason)


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _skus(lines: list[BilledDay]) -> str:
    return ", ".join(sorted({line.sku for line in lines}))


def _short(value: Fraction) -> str:
    return f"{rounded(value, PLACES):f}"


def _plain(value: object) -> Any:  # noqa: ANN401
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, Fraction):
        return f"{rounded(value, PLACES):f}"
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def read_nodes(path: Path) -> Iterator[tuple[str, str]]:
    """The lines `node,resource` of a file. Raises LedgerError, which names the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LedgerError(str(path), str(error), "a file of lines node,resource") from error
    for number, line in enumerate(lines, 1):
        if line.strip() and line.strip() != "node,resource":
            node, comma, resource = line.partition(",")
            if not comma or not node.strip() or not resource.strip():
                raise LedgerError(f"{path}:{number}", line, "node,resource")
            yield node.strip(), resource.strip()
