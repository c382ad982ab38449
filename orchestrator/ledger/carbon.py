"""Energy and CO2 emissions of leases.

    kWh = measured, where a meter was read; otherwise watts x utilisation x hours
    kg  = kWh x PUE x grams of CO2 per kWh of the grid / 1000

Watts are the rated power (TDP) of the accelerator. Working time counts at the share `work` of it (1, an
upper bound, as in model cards), idle and lost time at the share `idle` (an idle H100 draws about a tenth).
The figures are location-based, and exclude embodied emissions, hosts and network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any

from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.events import IDLE, LOST
from orchestrator.ledger.grid import Grid, Intensity
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.lines import DIMENSIONS
from orchestrator.ledger.money import HOUR_PLACES, hours, round_total
from orchestrator.ledger.power import Drawn

PLACES = 6
MILLIJOULES_PER_KWH = 3_600_000_000

WATTS: Mapping[str, tuple[int | str, str]] = {
    "b200": (1000, "NVIDIA DGX B200 datasheet"),
    "h200": (700, "NVIDIA H200 SXM datasheet"),
    "h100": (700, "NVIDIA H100 SXM datasheet"),
    "h800": (700, "NVIDIA H800 SXM: the H100's power"),
    "a100": (400, "NVIDIA A100 SXM datasheet"),
    "l40s": (350, "NVIDIA L40S datasheet"),
    "l4": (72, "NVIDIA L4 datasheet"),
    "v100": (300, "NVIDIA V100 SXM2 datasheet"),
    "t4": (70, "NVIDIA T4 datasheet"),
    "mi300x": (750, "AMD Instinct MI300X datasheet"),
    "p6-b200.48xlarge": (1000, "8 B200"),
    "p5en.48xlarge": (700, "8 H200"),
    "p5e.48xlarge": (700, "8 H200"),
    "p5.48xlarge": (700, "8 H100"),
    "p4de.24xlarge": (400, "8 A100"),
    "p4d.24xlarge": (400, "8 A100"),
    "cpu-slot": ("3.5", "Cloud Carbon Footprint: a vCPU of AWS at full load"),
}
"""Rated power of one accelerator by SKU, in watts, and the source of the figure."""


@dataclass(frozen=True, slots=True)
class EnergyModel:
    """The assumptions. `watts` adds SKUs to the table or replaces them; names are case-insensitive."""

    pue: Fraction = Fraction(1)
    work: Fraction = Fraction(1)
    idle: Fraction = Fraction(1, 10)
    watts: Mapping[str, Fraction] = field(default_factory=dict[str, Fraction])

    def rated(self, sku: str) -> Fraction:
        """The rated power of one accelerator of a SKU. Raises LedgerError if it is unknown."""
        name = sku.lower()
        for known, watts in self.watts.items():
            if known.lower() == name:
                return watts
        if name not in WATTS:
            hint = f"--watts {sku}=700, or one of {', '.join(WATTS)}"
            raise LedgerError("watts", sku, "a SKU whose rated power is known", hint)
        return Fraction(WATTS[name][0])


@dataclass(frozen=True, slots=True)
class CarbonRow:
    """One group: the energy of its accelerators including their share of the building (PUE), and its CO2.

    `measured_kwh` is the part of `kwh` that was measured.
    """

    values: tuple[str | int, ...]
    accelerator_hours: Decimal
    kwh: Decimal
    measured_kwh: Decimal
    kg_co2e: Decimal


@dataclass(frozen=True, slots=True)
class CarbonReport:
    """The groups and their total; the printed rows add up to it."""

    by: tuple[str, ...]
    rows: tuple[CarbonRow, ...]
    total: CarbonRow
    model: EnergyModel
    intensities: Mapping[str, Intensity]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; figures are decimal strings."""
        model = self.model
        return {
            "by": list(self.by),
            "rows": [{**dict(zip(self.by, row.values, strict=True)), **_figures(row)} for row in self.rows],
            "total": _figures(self.total),
            "assumptions": {
                "pue": f"{float(model.pue):g}",
                "work": f"{float(model.work):g}",
                "idle": f"{float(model.idle):g}",
                "grid": {
                    region or "everywhere": {
                        "grams_per_kwh": f"{found.grams_per_kwh:f}",
                        "source": found.source,
                    }
                    for region, found in self.intensities.items()
                },
            },
        }


@dataclass(slots=True)
class _Energy:
    ns: int = 0
    kwh: Fraction = Fraction(0)
    measured: Fraction = Fraction(0)
    kg: Fraction = Fraction(0)


def carbon(
    ledger: Ledger,
    by: Sequence[str],
    grid: Grid,
    model: EnergyModel,
    drawn: Mapping[str, Drawn] | None = None,
    first_day: int | None = None,
    end_day: int | None = None,
    name: str | None = None,
    as_of_ns: int | None = None,
) -> CarbonReport:
    """Energy and CO2 on the days [first_day, end_day), grouped by some of `lines.DIMENSIONS`. `name`
    restricts the report to a run or a pipeline. `drawn` is the measured energy of leases, over all or
    part of their time.

    Raises LedgerError for a SKU without a power rating, a region without a carbon intensity, or an
    unknown dimension.
    """
    for dimension in by:
        if dimension not in DIMENSIONS:
            raise LedgerError("by", dimension, ", ".join(DIMENSIONS))
    needed = [name for name in ("lease", "sku", "region", "activity") if name not in by]
    report = ledger.report_by([*by, *needed], first_day, end_day, as_of_ns, name=name)
    labels = [dict(zip(report.by, row.values, strict=True)) for row in report.rows]
    extents = _extents(ledger, as_of_ns) if drawn else {}
    groups: dict[tuple[str | int, ...], _Energy] = {}
    intensities: dict[str, Intensity] = {}
    for label, row in zip(labels, report.rows, strict=True):
        lease, region = str(label["lease"]), str(label["region"])
        share = model.idle if label["activity"] in (IDLE, LOST) else model.work
        modelled = model.rated(str(label["sku"])) * share * hours(row.ns) / 1000
        measured, uncovered = _measured((drawn or {}).get(lease), extents.get(lease, 0), row.ns)
        intensity = intensities.setdefault(region, grid.intensity(region))
        group = groups.setdefault(tuple(label[name] for name in by), _Energy())
        kwh = (measured + modelled * uncovered) * model.pue
        group.ns += row.ns
        group.kwh += kwh
        group.measured += measured * model.pue
        group.kg += kwh * Fraction(intensity.grams_per_kwh) / 1000
    return _assemble(tuple(by), groups, model, intensities)


def _extents(ledger: Ledger, as_of_ns: int | None) -> dict[str, int]:
    """The total time of each lease, whichever part of it the report covers."""
    rows = ledger.report_by(["lease"], as_of_ns=as_of_ns).rows
    return {str(row.values[0]): row.ns for row in rows}


def _measured(drawn: Drawn | None, extent_ns: int, ns: int) -> tuple[Fraction, Fraction]:
    """The measured kWh of `ns` of a lease, and the share of them that no meter covers.

    Measurements are spread evenly over the lease, because a meter does not know activities.
    """
    if drawn is None or extent_ns <= 0:
        return Fraction(0), Fraction(1)
    part = Fraction(ns, extent_ns)
    covered = min(Fraction(1), Fraction(drawn.end_ns - drawn.start_ns, extent_ns))
    return Fraction(drawn.millijoules, MILLIJOULES_PER_KWH) * part, 1 - covered


def _assemble(
    by: tuple[str, ...],
    groups: Mapping[tuple[str | int, ...], _Energy],
    model: EnergyModel,
    intensities: Mapping[str, Intensity],
) -> CarbonReport:
    order = sorted(groups)
    found = [groups[key] for key in order]
    row_hours, all_hours = round_total([hours(group.ns) for group in found], HOUR_PLACES)
    kwh, all_kwh = round_total([group.kwh for group in found], PLACES)
    measured, all_measured = round_total([group.measured for group in found], PLACES)
    kg, all_kg = round_total([group.kg for group in found], PLACES)
    rows = zip(order, row_hours, kwh, measured, kg, strict=True)
    total = CarbonRow((), all_hours, all_kwh, all_measured, all_kg)
    return CarbonReport(by, tuple(CarbonRow(*row) for row in rows), total, model, intensities)


def _figures(row: CarbonRow) -> dict[str, str]:
    return {
        "accelerator_hours": f"{row.accelerator_hours:f}",
        "kwh": f"{row.kwh:f}",
        "measured_kwh": f"{row.measured_kwh:f}",
        "kg_co2e": f"{row.kg_co2e:f}",
    }
