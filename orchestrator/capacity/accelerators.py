"""Peak performance of accelerators, and the share of it that training and sampling reach in practice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import ConfigError

TABLE = Path(__file__).parent / "accelerators.yaml"


@dataclass(frozen=True, slots=True)
class Range:
    """An estimate with its bounds; `low <= expected <= high`."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One GPU, or one CPU slot."""

    name: str
    flops: dict[str, float]
    """Peak FLOPs per second of dense products, by dtype."""
    published: bool
    """True if `flops` is the manufacturer's figure, False if it was measured with a program."""
    memory_bytes: float | None
    """None: as much as the machine has."""
    memory_bytes_per_second: float
    link_bytes_per_second: float
    """Bandwidth to another accelerator of the same node, in one direction."""
    learn: Range
    """Share of the peak FLOPs that forward and backward passes reach."""
    generate: Range
    """Share of the memory bandwidth that decoding reaches (or of the peak FLOPs if
    they are the bottleneck).
    """
    source: str


def accelerator_of(sku: str, table: Path = TABLE) -> Accelerator:
    """The accelerator behind the SKU of a price book. Raises ConfigError for one that is not in the
    table, and for a table that can't be read.
    """
    try:
        rows = yaml.safe_load(table.read_text(encoding="utf-8"))["accelerators"]
        known = {name: _row(row) for row in rows for name in row["skus"]}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ConfigError("accelerators", str(table), "a table like capacity/accelerators.yaml") from error
    if sku not in known:
        hint = "add it to a copy of the table: orchestrator plan --accelerators FILE"
        raise ConfigError("cluster.sku", sku, ", ".join(sorted(known)), hint)
    return known[sku]


def _row(row: dict[str, Any]) -> Accelerator:
    memory = row["memory_bytes"]
    return Accelerator(
        name=row["name"],
        flops={dtype: float(peak) for dtype, peak in row["flops"].items()},
        published={"published": True, "measured": False}[row["peak"]],
        memory_bytes=None if memory is None else float(memory),
        memory_bytes_per_second=float(row["memory_bytes_per_second"]),
        link_bytes_per_second=float(row["link_bytes_per_second"]),
        learn=Range(*row["utilisation"]["learn"]),
        generate=Range(*row["utilisation"]["generate"]),
        source=row["source"],
    )
