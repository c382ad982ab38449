"""Prices of accelerator-hours: effective-dated, with currency, source and date. They are exact rationals
until a report rounds them.

A *series* is the prices of one (SKU, region, commitment) in order of time. Each day has one price, because
prices change at midnight UTC. A gap or an overlap within a series is rejected with its row. So is a price
without source or date, because nobody could verify it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from orchestrator.ledger.calendar import date_of, day_number
from orchestrator.ledger.errors import PriceBookError, UnknownPriceError
from orchestrator.ledger.money import rounded

HOURS_PER_YEAR = Decimal(8766)
"""365.25 days."""


def _exact(value: object) -> object:
    """Reject YAML floats for money and factors, because they have already lost precision; use
    strings or integers.
    """
    if isinstance(value, float):
        raise ValueError("put decimals in quotes, so that they stay exact")
    return value


Exact = Annotated[Decimal, BeforeValidator(_exact), Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[Decimal, BeforeValidator(_exact), Field(gt=0, allow_inf_nan=False)]
Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$")]


class _Row(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, use_attribute_docstrings=True
    )


class Amortisation(_Row):
    """Owned hardware: the cost of an hour of use of one accelerator.

    capex / (life x utilisation) + opex / (year x utilisation) + power x PUE x price of a kWh
    """

    capex: Exact
    """Purchase price of one accelerator with its share of host, network and rack."""
    life_years: Positive
    utilisation: Positive
    """The share of its life in which it is leased, 0 < u <= 1. Its users pay for its idle time."""
    power_watts: Exact
    """Power of one accelerator with its share of the host, under load."""
    pue: Positive
    electricity_per_kwh: Exact
    opex_per_year: Exact = Decimal(0)
    """Space, staff and support for one accelerator."""

    @model_validator(mode="after")
    def _share(self) -> Amortisation:
        if self.utilisation > 1:
            raise ValueError("utilisation is a share: at most 1")
        return self

    def per_hour(self) -> Fraction:
        used = Fraction(HOURS_PER_YEAR) * Fraction(self.utilisation)
        capital = (
            Fraction(self.capex) / (Fraction(self.life_years) * used) + Fraction(self.opex_per_year) / used
        )
        return capital + Fraction(self.power_watts) / 1000 * Fraction(self.pue) * Fraction(
            self.electricity_per_kwh
        )


class Price(_Row):
    """One price of one SKU for a range of days.

    Either `amount` (for `accelerators` accelerators per hour) or `amortised`.
    """

    sku: str = Field(min_length=1)
    resource: Literal["gpu", "cpu"]
    region: str
    commitment: Literal["on_demand", "reserved", "spot", "owned"]
    amount: Exact | None = None
    accelerators: int = Field(default=1, ge=1)
    """How many accelerators (or CPU slots) `amount` buys: 8 for a p5.48xlarge."""
    amortised: Amortisation | None = None
    currency: Currency
    starts: date = Field(alias="from")
    ends: date | None = Field(alias="to")
    """The first day on which the price is no longer valid; null: no end."""
    source: str = Field(min_length=1)
    retrieved: date

    @model_validator(mode="after")
    def _one_price(self) -> Price:
        if (self.amount is None) == (self.amortised is None):
            raise ValueError("state either amount or amortised")
        if self.ends is not None and self.ends <= self.starts:
            raise ValueError(f"to: {self.ends} is not after from: {self.starts}")
        return self

    def per_hour(self) -> Fraction:
        """The price of one accelerator-hour."""
        if self.amortised is not None:
            return self.amortised.per_hour()
        return Fraction(self.amount or 0) / self.accelerators


class Rate(_Row):
    """1 `currency` is `rate` of `into`, for a range of days."""

    currency: Currency
    into: Currency
    rate: Positive
    starts: date = Field(alias="from")
    ends: date | None = Field(alias="to")
    source: str = Field(min_length=1)
    retrieved: date


SeriesKey = tuple[str, str, str]
"""SKU, region, commitment."""

RowType = TypeVar("RowType", Price, Rate)


class _File(_Row):
    name: str = Field(min_length=1)
    currency: Currency
    region: str
    commitment: Literal["on_demand", "reserved", "spot", "owned"]
    prices: tuple[Price, ...]
    rates: tuple[Rate, ...] = ()


@dataclass(frozen=True, slots=True)
class UnitPrice:
    """The price of one accelerator-hour, and its source."""

    per_hour: Fraction
    currency: str
    sku: str
    region: str
    commitment: str
    source: str


class PriceBook:
    """Prices by (SKU, region, commitment) and day. `currency`, `region` and `commitment` are the defaults."""

    def __init__(self, content: _File) -> None:
        self._content = content
        self.name, self.currency = content.name, content.currency
        self._series: dict[SeriesKey, list[Price]] = {}
        self._rates: dict[tuple[str, str], list[Rate]] = {}
        for row, price in _by_start(content.prices):
            _append(
                self._series.setdefault((price.sku, price.region, price.commitment), []),
                price,
                f"prices[{row}]",
            )
        for row, rate in _by_start(content.rates):
            _append(self._rates.setdefault((rate.currency, rate.into), []), rate, f"rates[{row}]")
        for row, price in enumerate(content.prices):
            self._require_rates(price, f"prices[{row}].currency")

    @classmethod
    def parse(cls, content: Mapping[str, Any], origin: str = "price_book") -> PriceBook:
        """Parse the content of a YAML file. Raises PriceBookError, which names the row."""
        try:
            return cls(_File.model_validate(dict(content)))
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
            raise PriceBookError(f"{origin}{where}", repr(first["input"])[:80], first["msg"]) from error

    @classmethod
    def load(cls, path: Path) -> PriceBook:
        """Read a price book from a YAML file. Raises PriceBookError."""
        import yaml

        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise PriceBookError(str(path), str(error), "a readable yaml file") from error
        if not isinstance(content, dict):
            raise PriceBookError(str(path), type(content).__name__, "a mapping")
        return cls.parse(content, str(path))

    def to_json(self) -> str:
        """Canonical JSON; `PriceBook.parse(json.loads(...))` returns an equal book."""
        return json.dumps(
            self._content.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":")
        )

    def series(self) -> frozenset[SeriesKey]:
        """All (SKU, region, commitment) with prices."""
        return frozenset(self._series)

    def without(self, known: Collection[SeriesKey]) -> PriceBook | None:
        """The book without those series; None if nothing remains."""
        left = [row for row in self._content.prices if (row.sku, row.region, row.commitment) not in known]
        return PriceBook(self._content.model_copy(update={"prices": tuple(left)})) if left else None

    def skus(self) -> list[str]:
        return sorted({sku for sku, _, _ in self._series})

    def accelerators(self, sku: str) -> int:
        """How many accelerators an instance of a SKU has: the maximum over its prices; 0 if it has none."""
        return max((price.accelerators for price in self._content.prices if price.sku == sku), default=0)

    def rows(self) -> list[dict[str, str | None]]:
        """The prices for display, by SKU and time; `per_hour` is rounded to 6 decimals."""
        return [
            {
                "book": self.name,
                "sku": price.sku,
                "region": price.region,
                "commitment": price.commitment,
                "per_hour": f"{rounded(price.per_hour(), 6):f}",
                "currency": price.currency,
                "from": str(price.starts),
                "to": None if price.ends is None else str(price.ends),
                "source": price.source,
                "retrieved": str(price.retrieved),
            }
            for _, series in sorted(self._series.items())
            for price in series
        ]

    def price(self, sku: str, day: int, region: str = "", commitment: str = "") -> UnitPrice:
        """The price of an accelerator-hour of `sku` on a day. Raises UnknownPriceError."""
        key = (sku, region or self._content.region, commitment or self._content.commitment)
        series = self._series.get(key)
        if series is None:
            known = ", ".join(sorted("/".join(known) for known in self._series)) or "none"
            hint = f"price book {self.name}"
            raise UnknownPriceError("sku", "/".join(key), known, hint)
        for price in series:
            if day_number(price.starts) <= day and (price.ends is None or day < day_number(price.ends)):
                return UnitPrice(price.per_hour(), price.currency, *key, price.source)
        days = f"{series[0].starts} to {series[-1].ends or 'today'}"
        raise UnknownPriceError(
            f"price of {'/'.join(key)}", str(date_of(day)), days, f"price book {self.name}"
        )

    def rate(self, currency: str, into: str, day: int) -> Fraction | None:
        """How much of `into` one `currency` was worth on a day; None if the book does not say."""
        for row in self._rates.get((currency, into), []):
            if day_number(row.starts) <= day and (row.ends is None or day < day_number(row.ends)):
                return Fraction(row.rate)
        return None

    def _require_rates(self, price: Price, where: str) -> None:
        if price.currency != self.currency and (price.currency, self.currency) not in self._rates:
            raise PriceBookError(where, price.currency, f"{self.currency}, or a rate into it under `rates`")


class PriceTable:
    """Price books, newest first: the first one that prices a SKU on a day is used.

    Reports use the currency of the newest book, unless another one is given.
    """

    def __init__(self, books: Sequence[PriceBook], currency: str = "") -> None:
        if not books:
            raise PriceBookError("price_book", "none", "at least one", "orchestrator cost prices adopt FILE")
        self.books = tuple(books)
        self.currency = currency or books[0].currency

    def price(self, sku: str, day: int, region: str = "", commitment: str = "") -> UnitPrice:
        """The price of an accelerator-hour of `sku` on a day, in the currency of the table.

        Raises UnknownPriceError, and PriceBookError if there is no exchange rate.
        """
        refusal: UnknownPriceError | None = None
        for book in self.books:
            try:
                found = book.price(sku, day, region, commitment)
            except UnknownPriceError as error:
                refusal = refusal or error
            else:
                per_hour = self.convert(found.per_hour, found.currency, day)
                return replace(found, per_hour=per_hour, currency=self.currency)
        raise refusal or UnknownPriceError("sku", sku, "none")

    def convert(self, amount: Fraction, currency: str, day: int) -> Fraction:
        """Convert an amount to the currency of the table at the rate of that day.

        Raises PriceBookError if no book has one.
        """
        if currency == self.currency:
            return amount
        for book in self.books:
            rate = book.rate(currency, self.currency, day)
            if rate is not None:
                return amount * rate
        allowed = f"a rate into {self.currency}"
        raise PriceBookError("currency", f"{currency} on {date_of(day)}", allowed, "add it under `rates`")


def _by_start(rows: Sequence[RowType]) -> list[tuple[int, RowType]]:
    """The rows with their positions in the file, in chronological order."""
    return sorted(enumerate(rows), key=lambda pair: pair[1].starts)


def _append(series: list[Any], row: Price | Rate, where: str) -> None:
    """Append a row to its series. Raises PriceBookError unless it starts on the day the previous one ends."""
    if series:
        before = series[-1]
        if before.ends is None or row.starts < before.ends:
            allowed = (
                f"{before.ends} or later"
                if before.ends
                else "no further row, because the previous one has no end"
            )
            raise PriceBookError(f"{where}.from", str(row.starts), allowed, "rows of one series overlap")
        if row.starts > before.ends:
            raise PriceBookError(f"{where}.from", str(row.starts), str(before.ends), "a gap within a series")
    series.append(row)
