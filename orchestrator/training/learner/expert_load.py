"""Computes, from the routers' counts, the expert shares for heat maps and metrics for each layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from orchestrator.training.records import ExpertLoad

_LAYER = re.compile(r"\.(\d+)\.")


def load_shares(routers: Iterable[str], loads: Tensor) -> tuple[ExpertLoad, ...]:
    """Each expert's share of its layer's tokens. `routers` are R module names (`model.layers.1.mlp.gate`);
    `loads` [R, E] counts how often each expert was chosen. Layers without tokens are left out.

    Loads [[6, 2]] of router `model.layers.1.mlp.gate` are layer 1 with shares (0.75, 0.25).
    """
    totals = loads.sum(dim=1)
    return tuple(
        ExpertLoad(layer, tuple((row / total).tolist()))
        for layer, row, total in zip(layer_numbers(routers), loads.double(), totals, strict=True)
        if total > 0
    )


def layer_metrics(routers: Iterable[str], loads: Tensor, entropies: Tensor) -> Mapping[str, float]:
    """`moe/expert_load_max_over_mean/layer_<i>` and `moe/router_entropy/layer_<i>`, from loads [R, E] and
    mean entropies [R] in nats; a layer without a token is left out.
    """
    found: dict[str, float] = {}
    for layer, row, entropy in zip(layer_numbers(routers), loads.double(), entropies, strict=True):
        if row.sum() > 0:
            found[f"moe/expert_load_max_over_mean/layer_{layer}"] = float(row.max() / row.mean())
            found[f"moe/router_entropy/layer_{layer}"] = float(entropy)
    return found


def layer_numbers(routers: Iterable[str]) -> list[int]:
    """The model's layer that each router is in: the first number in its name, else its place."""
    matches = [(index, _LAYER.search(name)) for index, name in enumerate(routers)]
    return [int(match.group(1)) if match else index for index, match in matches]
