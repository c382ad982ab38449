"""Draws expert load over training as small heat maps, one per layer: experts x steps, darker means more load.

A single hue becomes stronger with the load, so the picture is readable in print, in grey and on dark screens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

LoadSeries = Sequence[tuple[int, Sequence[float]]]
"""(step, share of each expert), by step."""

MOST_LAYERS = 12
MOST_ROWS = 32
MOST_COLUMNS = 48
STRONGEST = 3.0
"""The load, in multiples of the mean, at which the colour is strongest."""
SCALE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)

_LEFT, _TOP, _WIDTH, _ROW, _BOTTOM = 30, 4, 260, 9, 18


@dataclass(frozen=True, slots=True)
class HeatPanel:
    """The heat map of one layer, and how uneven its load was at the end."""

    layer: int
    svg: str
    busiest: float
    """Load of the busiest expert over the mean, in the last column."""


def heat_panels(loads: Mapping[int, LoadSeries]) -> list[HeatPanel]:
    """One panel for each layer. If there are more than MOST_LAYERS, that many evenly spaced layers."""
    layers = sorted(layer for layer, series in loads.items() if series)
    if len(layers) > MOST_LAYERS:
        layers = [layers[index * (len(layers) - 1) // (MOST_LAYERS - 1)] for index in range(MOST_LAYERS)]
    return [_panel(layer, loads[layer]) for layer in layers]


def strength(load: float) -> float:
    """The strength of the colour, from 0 to 1, for a load as a multiple of the mean.

    >>> strength(0), strength(1.5), strength(9)
    (0.0, 0.5, 1.0)
    """
    return min(load / STRONGEST, 1.0)


def columns(series: LoadSeries) -> list[tuple[int, int, list[float]]]:
    """The columns: (first step, last step, load of each expert over the mean). Neighbouring steps are
    averaged if there are more than MOST_COLUMNS.

    >>> columns([(1, [0.75, 0.25])])
    [(1, 1, [1.5, 0.5])]
    """
    size = -(-len(series) // MOST_COLUMNS)
    found: list[tuple[int, int, list[float]]] = []
    for start in range(0, len(series), size):
        part = series[start : start + size]
        experts = len(part[0][1])
        means = [sum(shares[expert] for _, shares in part) / len(part) for expert in range(experts)]
        found.append((part[0][0], part[-1][0], [mean * experts for mean in means]))
    return found


def rows(loads: Sequence[float]) -> list[float]:
    """The rows of a column: one per expert or, if there are more than MOST_ROWS, the busiest
    of neighbouring experts.
    """
    size = -(-len(loads) // MOST_ROWS)
    return [max(loads[start : start + size]) for start in range(0, len(loads), size)]


def _panel(layer: int, series: LoadSeries) -> HeatPanel:
    found = columns(series)
    experts = len(found[0][2])
    drawn = [(first, last, rows(loads)) for first, last, loads in found]
    count = len(drawn[0][2])
    height = _ROW * count
    busiest = max(found[-1][2])
    spoken = f"Load of {experts} experts of layer {layer}; the busiest ends at {busiest:.1f} times the mean"
    svg = ElementTree.Element(
        "svg",
        {
            "viewBox": f"0 0 {_LEFT + _WIDTH + 4} {_TOP + height + _BOTTOM}",
            "class": "heat",
            "role": "img",
            "aria-label": spoken,
        },
    )
    frame = {"x": _LEFT, "y": _TOP, "width": _WIDTH, "height": height, "class": "frame"}
    for index, (first, last, column) in enumerate(drawn):
        x, width = _LEFT + index * _WIDTH / len(drawn), _WIDTH / len(drawn)
        for row, load in enumerate(column):
            cell = _rect(svg, x, _TOP + row * _ROW, width, _ROW, load)
            when = f"step {first}" if first == last else f"steps {first} to {last}"
            ElementTree.SubElement(
                cell, "title"
            ).text = f"{_experts(row, count, experts)}, {when}: {load:.2f}"
    ElementTree.SubElement(svg, "rect", {name: str(value) for name, value in frame.items()})
    _text(svg, _LEFT - 5, _TOP + 10, "0", "end")
    _text(svg, _LEFT - 5, _TOP + height, str(experts - 1), "end")
    _text(svg, _LEFT, _TOP + height + 14, str(drawn[0][0]), "")
    _text(svg, _LEFT + _WIDTH, _TOP + height + 14, f"step {drawn[-1][1]}", "end")
    return HeatPanel(layer, ElementTree.tostring(svg, encoding="unicode"), busiest)


def scale() -> str:
    """Draw the legend that maps colours to multiples of the mean load."""
    width = 44
    svg = ElementTree.Element(
        "svg",
        {
            "viewBox": f"0 0 {width * len(SCALE)} 34",
            "class": "heat scale",
            "role": "img",
            "aria-label": "Colours from no load to three times the mean load and more",
        },
    )
    for index, load in enumerate(SCALE):
        _rect(svg, index * width, 0, width, 16, load)
        label = f"{load:g}×" + ("+" if load == STRONGEST else "")
        _text(svg, index * width + width / 2, 30, label, "middle")
    frame = {"x": "0", "y": "0", "width": str(width * len(SCALE)), "height": "16", "class": "frame"}
    ElementTree.SubElement(svg, "rect", frame)
    return ElementTree.tostring(svg, encoding="unicode")


def _experts(row: int, count: int, experts: int) -> str:
    size = -(-experts // count) if count < experts else 1
    first, last = row * size, min((row + 1) * size, experts) - 1
    return f"expert {first}" if first == last else f"busiest of experts {first} to {last}"


def _rect(
    svg: ElementTree.Element, x: float, y: float, width: float, height: float, load: float
) -> ElementTree.Element:
    values = {"x": f"{x:.2f}", "y": f"{y:g}", "width": f"{width:.2f}", "height": f"{height:g}"}
    return ElementTree.SubElement(
        svg, "rect", {**values, "class": "load", "fill-opacity": f"{strength(load):.3f}"}
    )


def _text(svg: ElementTree.Element, x: float, y: float, text: str, style: str) -> None:
    values = {"x": f"{x:g}", "y": f"{y:g}", "class": f"tick {style}".strip()}
    ElementTree.SubElement(svg, "text", values).text = text
