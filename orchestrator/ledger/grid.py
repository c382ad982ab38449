"""Carbon intensity of electricity grids, from the tables of CodeCarbon but without its fallbacks.

CodeCarbon (extra `carbon`) has the yearly mix of 213 countries, and Google's published figures for its
regions. For anything else it silently uses the world average; here that is an error.
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
"""The countries of AWS regions (docs.aws.amazon.com/global-infrastructure). AWS publishes no
figures per region.
"""


@dataclass(frozen=True, slots=True)
class Intensity:
    """Location-based grams of CO2 equivalent per kilowatt-hour, and the source of the figure."""

    grams_per_kwh: Decimal
    source: str


class Grid:
    """Looks up carbon intensities: an explicit figure has precedence, then a country, then the
    region of the usage.
    """

    def __init__(self, grams_per_kwh: Decimal | None = None, country: str = "") -> None:
        self._everywhere = None if grams_per_kwh is None else Intensity(grams_per_kwh, "given")
        if self._everywhere is None and country:
            self._everywhere = _of_country(country)
        self._regions: dict[str, Intensity] = {}

    def intensity(self, region: str) -> Intensity:
        """The intensity of a region. Raises LedgerError if it is unknown."""
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
        raise LedgerError("--country", code, "a three-letter ISO 3166 code: USA, CHE, ...")
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
