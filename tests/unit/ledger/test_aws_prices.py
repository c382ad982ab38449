"""AWS list prices from the JSON of the Pricing API, offline."""

import json
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger.aws_prices import price_book_of, read_products
from orchestrator.ledger.calendar import day_number
from orchestrator.ledger.errors import PriceBookError
from orchestrator.ledger.prices import PriceBook

FILE = Path(__file__).parents[3] / "docs" / "examples" / "prices" / "get-products.json"
DAY = day_number(date(2026, 1, 1))


def test_instance_hours_become_prices_of_one_accelerator():
    book = PriceBook.parse(price_book_of(read_products(FILE), "list", date(2026, 11, 23)))
    assert book.price("p5.48xlarge", DAY).per_hour == Fraction("6.88")
    assert book.price("p5.48xlarge", DAY, commitment="reserved").per_hour == Fraction("43.16") / 8
    assert book.price("p4d.24xlarge", DAY).per_hour == Fraction("21.957642") / 8
    assert book.price("m7g.large", DAY).per_hour == Fraction("0.0408")
    assert len(book.rows()) == 4  # Windows, and a reservation paid upfront, are none of these
    assert {row["from"] for row in book.rows()} == {"2025-06-01"}
    assert "EXAMPLEP5" in str(book.rows()[-1]["source"])


def test_a_plain_list_of_products_is_accepted(tmp_path: Path):
    listed = [json.loads(entry) for entry in json.loads(FILE.read_text())["PriceList"]]
    (tmp_path / "list.json").write_text(json.dumps(listed))
    assert read_products(tmp_path / "list.json") == read_products(FILE)


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ("{", r"file\.json"),
        ('{"PriceList": 5}', r"file\.json"),
        ('{"PriceList": ["{"]}', r"PriceList\[0\]"),
        ('{"PriceList": [{"product": {}}]}', r"PriceList\[0\]"),
        ('{"PriceList": [{"product": {"attributes": []}}]}', r"PriceList\[0\]"),
    ],
)
def test_a_malformed_price_list_is_rejected_with_its_entry(tmp_path: Path, content: str, where: str):
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(PriceBookError, match=where):
        read_products(tmp_path / "file.json")


def test_a_list_without_instance_hours_is_rejected():
    product: dict[str, Any] = {"product": {"attributes": {"operatingSystem": "Windows"}}}
    with pytest.raises(PriceBookError, match="no instance-hour"):
        price_book_of([product], "list", date(2026, 1, 1))
