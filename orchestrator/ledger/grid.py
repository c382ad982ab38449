"""How much CO2 a kilowatt-hour comes with: CodeCarbon's tables, without its guesses.

CodeCarbon (extra `carbon`) has the yearly mix of 213 countries and what Google publishes for its regions.
Where it knows nothing it takes the world's average and says so in a log; here that is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from orchestrator.ledger.errors import LedgerError

AWS_COUNTRIES = {
    "af-south-1": "ZAF",
    "ap-northeast-1": "JPN",
    "ap-northeast-2": "KOR",
    "ap-northeast-3": "JPN",
    "ap-south-1": "IND",
    "ap-south-2": "IND",
    "ap-southeast-1": "SGP",
    "ap-southeast-2": "AUS",
    "ap-southeast-3": "IDN",
    "ap-southeast-4": "AUS",
    "ca-central-1": "CAN",
    "ca-west-1": "CAN",
    "eu-central-1": "DEU",
    "eu-central-2": "CHE",
    "eu-north-1": "SWE",
    "eu-south-1": "ITA",
    "eu-south-2": "ESP",
    "eu-west-1": "IRL",
    "eu-west-2": "GBR",
    "eu-west-3": "FRA",
    "il-central-1": "ISR",
    "me-central-1": "ARE",
    "me-south-1": "BHR",
    "sa-east-1": "BRA",
    "us-east-1": "USA",
    "us-east-2": "USA",
    "us-west-1": "USA",
    "us-west-2": "USA",
}
"""Where AWS regions are (docs.aws.amazon.com/global-infrastructure): AWS publishes no figure for a region."""


@dataclass(frozen=True, slots=True)
class Intensity:
    """Grams of CO2 equivalent a kilowatt-hour, location-based, and where the figure is from."""

    grams_per_kwh: Decimal
    source: str


class Grid:
    """Looks intensities up: a figure that is given counts everywhere, then a country, then each region."""

    def __init__(self, grams_per_kwh: Decimal | None = None, country: str = "") -> None:
        self._everywhere = None if grams_per_kwh is None else Intensity(grams_per_kwh, "given")
        if self._everywhere is None and country:
            self._everywhere = _of_country(country)
        self._regions: dict[str, Intensity] = {}

    def intensity(self, region: str) -> Intensity:
        """The intensity of a region. Raises LedgerError if nothing is known of it."""
        if self._everywhere is not None:
            return self._everywhere
        if region not in self._regions:
            country = AWS_COUNTRIES.get(region)
            self._regions[region] = _of_country(country) if country else _of_google_region(region)
        return self._regions[region]


def _of_country(code: str) -> Intensity:
    mix = _tables().get_global_energy_mix_data()
    found = mix.get(code.upper())
    if found is None:
        raise LedgerError("--country", code, "an ISO 3166 code of three letters: USA, CHE, ...")
    grams = Decimal(str(found["carbon_intensity"]))
    return Intensity(grams, f"CodeCarbon: {found['country_name']}, {found['year']}")


def _of_google_region(region: str) -> Intensity:
    table = _tables().get_cloud_emissions_data()
    rows = table[(table["region"] == region) & table["impact"].notna()]
    if len(rows) != 1:
        hint = "--country USA, or --grams-per-kwh N"
        raise LedgerError("region", region or "none", "a region of AWS or Google Cloud", hint)
    row = rows.iloc[0]
    return Intensity(Decimal(str(row["impact"])), f"CodeCarbon: {row['providerName']} {region}")


def _tables() -> Any:  # noqa: ANN401 - the library has no types
    try:
        from codecarbon.input import DataSource
    except ImportError as error:
        hint = "pip install 'rl-orchestrator[carbon]', or give --grams-per-kwh"
        raise LedgerError("codecarbon", "not installed", "the extra carbon", hint) from error
    return DataSource()
