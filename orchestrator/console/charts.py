"""Draws charts as inline SVG. Colours are CSS classes of the page's style sheet, so that they follow the
light and dark themes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from orchestrator.percent import percent, percent_with_interval
from orchestrator.training.telemetry.curve_layout import (
    Panel,
    Series,
    StageCurve,
    layout,
    smooth,
    spread,
    thin,
)

MOST_POINTS = 240
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class Frame:
    """Sizes of a learning curve in SVG units. The text size is set by its CSS class."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    ticks: int
    label_gap: float
    dot: float
    """Radius of the dots of evaluations; 0: no dots."""
    names: bool
    """Whether curves are labelled with their names at the end. Without room for names, only the last values
    are shown and the page has a legend.
    """

    def x(self, place: float) -> float:
        """Horizontal position of a point on the layout's axis, which runs from 0 to 1."""
        return round(self.left + place * (self.width - self.left - self.right), 1)

    def y(self, value: float) -> float:
        """Vertical position of a share between 0 and 1."""
        return round(self.top + (1 - min(max(value, 0.0), 1.0)) * (self.height - self.top - self.bottom), 1)


WIDE = Frame(
    width=900,
    height=400,
    left=48,
    right=172,
    top=34,
    bottom=34,
    ticks=5,
    label_gap=0.065,
    dot=3.5,
    names=True,
)
NARROW = Frame(
    width=360, height=290, left=46, right=62, top=30, bottom=30, ticks=3, label_gap=0.075, dot=0, names=False
)


def learning_curve(stages: Sequence[StageCurve], frame: Frame) -> str:
    """Draw held-out accuracy, training accuracy and self-checks over the steps,
    with the stages side by side.
    """
    svg = _svg(frame.width, frame.height, "curve", _spoken(stages))
    panels = layout(stages)
    bounds = {(stage.name, step): (low, high) for stage in stages for step, low, high in stage.heldout_band}
    for index, panel in enumerate(panels):
        if len(panels) > 1:
            _stage_band(svg, frame, panel, shaded=index % 2 == 0)
    for level in LEVELS:
        y = frame.y(level)
        _add(svg, "line", {"x1": frame.left, "x2": frame.x(1), "y1": y, "y2": y, "class": "grid"})
        _text(svg, frame.left - 8, y + 4, f"{level:.0%}", "tick end")
    for panel in panels:
        for place, text in panel.ticks(frame.ticks, is_last=panel is panels[-1]):
            _text(svg, frame.x(place), frame.height - frame.bottom + 20, text, "tick middle")
        _noisy(svg, frame, panel, panel.stage.train, "train")
        _noisy(svg, frame, panel, panel.stage.reflection, "reflection")
        _band(svg, frame, panel)
        _path(svg, frame, panel.place(thin(panel.stage.heldout, MOST_POINTS)), "heldout line")
        for step, value in panel.stage.heldout if frame.dot else ():
            dot = _add(
                svg,
                "circle",
                {"cx": frame.x(panel.x(step)), "cy": frame.y(value), "r": frame.dot, "class": "heldout dot"},
            )
            shown = percent_with_interval(value, bounds.get((panel.stage.name, step)))
            _add(dot, "title", {}).text = f"step {step}: {shown} of the held-out prompts"
    _end_labels(svg, frame, stages)
    if panels and len(panels[-1].stage.heldout) > 1:
        step, value = panels[-1].stage.heldout[0]
        anchor = ("end", -6) if panels[-1].left else ("", 6)
        x = frame.x(panels[-1].x(step)) + anchor[1]
        _text(svg, x, frame.y(value) - 9, percent(value), f"label heldout {anchor[0]}")
    return ElementTree.tostring(svg, encoding="unicode")


def small_chart(series: Series) -> str:
    """Draw one metric over the steps on its own range. It has no axes; its first and last values
    are written beside it.
    """
    svg = _svg(200, 48, "small", f"from {series[0][1]:.3g} to {series[-1][1]:.3g}")
    values = [value for _, value in series]
    low, high = min(values), max(values)
    first, last = series[0][0], series[-1][0]

    def point(step: int, value: float) -> str:
        x = 3 + 194 * (step - first) / max(last - first, 1)
        y = 44 - 40 * (value - low) / (high - low or 1.0)
        return f"{x:.1f},{y:.1f}"

    for points, style in ((series, "raw"), (smooth(series), "line")):
        drawn = " ".join(point(step, value) for step, value in thin(points, MOST_POINTS))
        _add(svg, "polyline", {"points": drawn, "class": f"metric {style}"})
    return ElementTree.tostring(svg, encoding="unicode")


def _svg(width: int, height: int, name: str, spoken: str) -> ElementTree.Element:
    return ElementTree.Element(
        "svg", {"viewBox": f"0 0 {width} {height}", "class": name, "role": "img", "aria-label": spoken}
    )


def _spoken(stages: Sequence[StageCurve]) -> str:
    """The text for screen readers."""
    ends = [(stage.name, stage.heldout[0][1], stage.heldout[-1][1]) for stage in stages if stage.heldout]
    parts = [
        f"{name}: held-out accuracy from {percent(start)} to {percent(end)}" for name, start, end in ends
    ]
    return "; ".join(parts) or "Nothing was measured yet"


def _stage_band(svg: ElementTree.Element, frame: Frame, panel: Panel, *, shaded: bool) -> None:
    x = frame.x(panel.left)
    if shaded:
        box = {
            "x": x,
            "y": frame.top,
            "width": round(frame.x(panel.left + panel.width) - x, 1),
            "height": frame.height - frame.top - frame.bottom,
            "class": "band",
        }
        _add(svg, "rect", box)
    _text(svg, x + 4, frame.top - 10, panel.stage.name, "tick")


def _noisy(svg: ElementTree.Element, frame: Frame, panel: Panel, series: Series, name: str) -> None:
    _path(svg, frame, panel.place(thin(series, MOST_POINTS)), f"{name} raw")
    _path(svg, frame, panel.place(thin(smooth(series), MOST_POINTS)), f"{name} line")


def _band(svg: ElementTree.Element, frame: Frame, panel: Panel) -> None:
    """Draw the confidence interval of held-out accuracy as a closed shape: along the upper bounds and
    back along the lower ones.
    """
    lows = thin([(step, low) for step, low, _ in panel.stage.heldout_band], MOST_POINTS)
    highs = thin([(step, high) for step, _, high in panel.stage.heldout_band], MOST_POINTS)
    points = [*panel.place(highs), *reversed(panel.place(lows))]
    if points:
        drawn = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in points)
        _add(svg, "polygon", {"points": drawn, "class": "interval"})


def _path(svg: ElementTree.Element, frame: Frame, points: Sequence[tuple[float, float]], style: str) -> None:
    if points:
        drawn = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in points)
        _add(svg, "polyline", {"points": drawn, "class": style})


def _end_labels(svg: ElementTree.Element, frame: Frame, stages: Sequence[StageCurve]) -> None:
    curves = (
        ("held-out", "heldout", [stage.heldout for stage in stages]),
        ("training", "train", [smooth(stage.train) for stage in stages]),
        ("self-checks", "reflection", [smooth(stage.reflection) for stage in stages]),
    )
    ends = [(name, style, [points[-1][1] for points in series if points]) for name, style, series in curves]
    shown = [(name, style, values[-1]) for name, style, values in ends if values]
    heights = spread([value for _, _, value in shown], frame.label_gap, 0.0, 1.0)
    for (name, style, value), height in zip(shown, heights, strict=True):
        text = f"{name} {percent(value)}" if frame.names else percent(value)
        _text(svg, frame.x(1) + 10, frame.y(height) + 4, text, f"label {style}")


def _text(svg: ElementTree.Element, x: float, y: float, text: str, style: str) -> None:
    _add(svg, "text", {"x": x, "y": round(y, 1), "class": style.strip()}).text = text


def _add(parent: ElementTree.Element, tag: str, attributes: dict[str, str | float]) -> ElementTree.Element:
    return ElementTree.SubElement(parent, tag, {name: str(value) for name, value in attributes.items()})
