"""Price books: lookups, and invalid books, which are rejected with their row."""

from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.ledger.calendar import day_number
from orchestrator.ledger.errors import PriceBookError, UnknownPriceError
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.prices import PriceBook, PriceTable

CONF = Path(__file__).parents[3] / "conf" / "price_book"


def price(**changed: object) -> dict[str, object]:
    row: dict[str, object] = {
        "sku": "h100",
        "resource": "gpu",
        "region": "us",
        "commitment": "on_demand",
        "amount": "16",
        "accelerators": 8,
        "currency": "USD",
        "from": "2026-01-01",
        "to": None,
        "source": "a list",
        "retrieved": "2026-01-01",
    }
    return {**row, **changed}


def rate(**changed: object) -> dict[str, object]:
    row = {"currency": "EUR", "into": "USD", "rate": "1.25", "from": "2026-01-01", "to": None}
    return {**row, "source": "ECB", "retrieved": "2026-01-01", **changed}


def book(*prices: dict[str, object], **changed: Any) -> PriceBook:
    content = {
        "name": "t",
        "currency": "USD",
        "region": "us",
        "commitment": "on_demand",
        "prices": list(prices),
    }
    return PriceBook.parse({**content, **changed})


def on(text: str) -> int:
    return day_number(date.fromisoformat(text))


def test_a_price_holds_from_its_first_day_until_the_next_one():
    made = book(price(to="2026-03-01"), price(amount="8", **{"from": "2026-03-01"}))
    assert [made.price("h100", on(day)).per_hour for day in ("2026-01-01", "2026-02-28", "2026-03-01")] == [
        2,
        2,
        1,
    ]


def test_region_and_commitment_choose_among_the_prices_of_a_sku():
    made = book(price(), price(commitment="spot", amount="4"), price(region="eu", amount="24"))
    assert made.price("h100", on("2026-01-01")).per_hour == 2
    assert made.price("h100", on("2026-01-01"), commitment="spot").per_hour == Fraction(1, 2)
    assert made.price("h100", on("2026-01-01"), region="eu").per_hour == 3


def test_owned_hardware_costs_capital_operation_and_power():
    amortised = {
        "capex": "35064",
        "life_years": "4",
        "utilisation": "0.5",
        "opex_per_year": "4383",
        "power_watts": "1000",
        "pue": "1.2",
        "electricity_per_kwh": "0.25",
    }
    made = book(price(amount=None, amortised=amortised, commitment="owned"), commitment="owned")
    # 35064 over 4 years of 8766 h used half: 2; 4383 a year used half: 1; 1 kW x 1.2 x 0.25: 0.3
    assert made.price("h100", on("2026-01-01")).per_hour == Fraction(33, 10)


def test_the_newest_book_with_a_sku_is_used_and_currencies_are_converted_at_the_daily_rate():
    old = book(price(), price(sku="a100", amount="8"))
    new = book(
        price(amount="20", currency="EUR"),
        currency="USD",
        rates=[rate(to="2026-02-01"), rate(rate="1.5", **{"from": "2026-02-01"})],
    )
    table = PriceTable([new, old])
    assert table.price("h100", on("2026-01-31")).per_hour == Fraction(20, 8) * Fraction(5, 4)
    assert table.price("h100", on("2026-02-01")).per_hour == Fraction(20, 8) * Fraction(3, 2)
    assert table.price("a100", on("2026-02-01")).per_hour == 1
    with pytest.raises(UnknownPriceError, match="v100/us/on_demand"):
        table.price("v100", on("2026-02-01"))
    with pytest.raises(PriceBookError, match="JPY on 2026-02-01"):
        table.convert(Fraction(1), "JPY", on("2026-02-01"))
    with pytest.raises(PriceBookError, match="at least one"):
        PriceTable([])


@pytest.mark.parametrize(
    ("prices", "where"),
    [
        (
            [price(to="2026-02-01"), price(**{"from": "2026-02-02"})],
            r"prices\[1\]\.from: got 2026-02-02, allowed: 2026-02-01",
        ),
        ([price(to="2026-02-02"), price(**{"from": "2026-02-01"})], r"prices\[1\]\.from: got 2026-02-01"),
        ([price(), price(**{"from": "2026-02-01"})], r"prices\[1\]\.from.*no end"),
        ([price(to="2026-01-01")], r"prices\[0\].*is not after"),
        ([price(source="")], r"prices\[0\]\.source"),
        ([{k: v for k, v in price().items() if k != "retrieved"}], r"prices\[0\]\.retrieved"),
        ([price(amount=16.5)], r"prices\[0\]\.amount.*in quotes"),
        ([price(amount="-1")], r"prices\[0\]\.amount"),
        ([price(amount=None)], r"prices\[0\].*either amount or amortised"),
        ([price(accelerators=0)], r"prices\[0\]\.accelerators"),
        ([price(currency="EUR")], r"prices\[0\]\.currency: got EUR.*a rate into it"),
        ([price(currency="dollar")], r"prices\[0\]\.currency"),
        ([price(colour="red")], r"prices\[0\]\.colour"),
    ],
    ids=[
        "gap",
        "overlap",
        "no end",
        "ends first",
        "no source",
        "no date",
        "float",
        "negative",
        "no price",
        "none",
        "no rate",
        "currency",
        "key",
    ],
)
def test_an_invalid_price_book_is_rejected_with_its_row(prices: list[dict[str, object]], where: str):
    with pytest.raises(PriceBookError, match=where):
        book(*prices)


def test_the_rows_of_a_series_may_stand_in_any_order():
    made = book(price(amount="8", **{"from": "2026-03-01"}), price(to="2026-03-01"))
    assert made.price("h100", on("2026-02-01")).per_hour == 2


def test_a_day_without_a_price_is_rejected_with_the_priced_days():
    with pytest.raises(UnknownPriceError, match="2025-12-31, allowed: 2026-01-01 to today"):
        book(price()).price("h100", on("2025-12-31"))


def test_a_book_survives_its_json_and_lists_its_prices():
    import json

    made = book(price(to="2026-03-01"), price(amount="8", **{"from": "2026-03-01"}), rates=[rate()])
    again = PriceBook.parse(json.loads(made.to_json()))
    assert again.to_json() == made.to_json()
    assert [(row["per_hour"], row["from"], row["to"]) for row in made.rows()] == [
        ("2.000000", "2026-01-01", "2026-03-01"),
        ("1.000000", "2026-03-01", None),
    ]


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_price_book_is_valid_and_has_sources(path: Path):
    made = PriceBook.load(path)
    assert made.name == path.stem
    assert all(row["source"] and row["retrieved"] for row in made.rows())


def test_a_file_that_is_not_a_price_book_is_rejected_by_name(tmp_path: Path):
    for text in ("- 1", "a: [", yaml.safe_dump({"name": "x"})):
        (tmp_path / "book.yaml").write_text(text)
        with pytest.raises(PriceBookError, match=r"book\.yaml"):
            PriceBook.load(tmp_path / "book.yaml")
    with pytest.raises(PriceBookError, match=r"none\.yaml"):
        PriceBook.load(tmp_path / "none.yaml")


def test_aws_prices_are_per_accelerator_hour():
    made = PriceBook.load(CONF / "aws.yaml")
    assert made.price("p5.48xlarge", on("2025-05-31")).per_hour == Fraction("12.29")
    assert made.price("p5.48xlarge", on("2025-06-01")).per_hour == Fraction("6.88")


def test_a_run_only_adds_prices_that_were_missing():
    ledger = Ledger.in_memory(book(price()))
    cheap = book(price(amount="1"), price(sku="a100", amount="8"), name="somebody's own")
    assert ledger.prices.offer(cheap)
    assert not ledger.prices.offer(cheap)
    table = PriceTable(ledger.prices.books())
    assert [table.price(sku, on("2026-02-01")).per_hour for sku in ("h100", "a100")] == [2, 1]
    assert ledger.prices.adopt(book(price(amount="8"), name="finance's"))
    assert PriceTable(ledger.prices.books()).price("h100", on("2026-02-01")).per_hour == 1


def test_a_run_does_not_change_the_currency_of_a_ledger():
    ledger = Ledger.in_memory(book(price()))
    euros = book(price(sku="a100", currency="EUR"), currency="EUR")
    assert not ledger.prices.offer(euros)
    assert PriceTable(ledger.prices.books()).currency == "USD"
