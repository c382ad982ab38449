"""Draws what all actors of a run did in some steps as a Gantt chart in SVG: a row for each actor, a bar for
each span, and the critical path as a line through the bars.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from orchestrator.clock import NANOSECONDS
from orchestrator.runs.timeline.critical_path import CONTROLLER, Segment
from orchestrator.runs.timeline.spans import ActorSpan
from orchestrator.runs.timeline.steps import StepWindow

STYLES = {
    "generate": "generate",
    "score": "score",
    "update": "learn",
    "sync": "sync",
    "evaluate": "evaluate",
}
"""CSS classes of activities; all others look like `other`."""
NAMES = {"generate": "generate", "score": "score", "learn": "update", "sync": "sync weights"}
"""Legend of CSS classes; the others are named as they are."""
ROLES = ("learner", "rollout", "reward")

MOST_STEPS = 4
MOST_SPANS = 800
MOST_ROWS = 24
NARROWEST_BAR = 0.6
LETTER = 7
"""Width of a letter, to keep the labels of short steps from overlapping."""
_TOP, _BOTTOM = 24, 26


@dataclass(frozen=True, slots=True)
class GanttFrame:
    """Sizes of a chart in SVG units."""

    width: int
    left: int
    row: int
    ticks: int


WIDE_GANTT = GanttFrame(width=900, left=84, row=20, ticks=8)
NARROW_GANTT = GanttFrame(width=360, left=70, row=18, ticks=4)


@dataclass(frozen=True, slots=True)
class GanttData:
    """Neighbouring steps in order, the spans that overlap them, and their critical paths."""

    windows: tuple[StepWindow, ...]
    spans: tuple[ActorSpan, ...]
    path: tuple[Segment, ...]

    def newest(self, steps: int) -> GanttData:
        """Only the newest steps."""
        windows = self.windows[-steps:]
        start_ns = windows[0].start_ns
        return GanttData(
            windows,
            tuple(span for span in self.spans if span.end_ns > start_ns),
            tuple(segment for segment in self.path if segment.end_ns > start_ns),
        )

    @property
    def styles(self) -> list[tuple[str, str]]:
        """(CSS class, name) of the activities in the chart, for a legend."""
        used = {STYLES.get(span.activity, "other") for span in self.spans}
        return [(style, NAMES.get(style, style)) for style in (*STYLES.values(), "other") if style in used]


def readable(data: GanttData) -> GanttData:
    """As many of the newest steps as one chart can show."""
    shown = data.newest(MOST_STEPS)
    for steps in range(len(shown.windows) - 1, 0, -1):
        if len(shown.spans) <= MOST_SPANS:
            break
        shown = shown.newest(steps)
    return shown


def actors_of(data: GanttData) -> list[str]:
    """The actors in the order of the rows. If there are more than MOST_ROWS, those on the critical path are
    preferred to others.
    """
    roles = {span.actor: span.role for span in data.spans}
    on_path = {segment.actor for segment in data.path}
    chosen = sorted(roles, key=lambda actor: (actor not in on_path, _order(roles[actor], actor)))[:MOST_ROWS]
    return sorted(chosen, key=lambda actor: _order(roles[actor], actor))


def gantt_chart(data: GanttData, frame: GanttFrame) -> str:
    """Draw the steps of `data`, which has at least one step and one span."""
    start_ns, end_ns = data.windows[0].start_ns, data.windows[-1].end_ns
    actors = actors_of(data)
    drawing = _Drawing(frame, start_ns, end_ns, actors)
    svg = ElementTree.Element(
        "svg",
        {
            "viewBox": f"0 0 {frame.width} {drawing.bottom + _BOTTOM}",
            "class": "gantt",
            "role": "img",
            "aria-label": f"What {len(actors)} actors did in {_steps(data.windows)}",
        },
    )
    _grid(svg, drawing, data.windows)
    for span in data.spans:
        if span.actor in drawing.rows:
            _bar(svg, drawing, span)
    points = drawing.chain(data.path)
    if points:
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        _add(svg, "polyline", {"points": drawn, "class": "critical"})
    return ElementTree.tostring(svg, encoding="unicode")


class _Drawing:
    """Maps times and actors to places."""

    def __init__(self, frame: GanttFrame, start_ns: int, end_ns: int, actors: Sequence[str]) -> None:
        self.frame, self.start_ns, self.end_ns = frame, start_ns, end_ns
        self.rows = {actor: index for index, actor in enumerate(actors)}
        self.bottom = _TOP + frame.row * len(actors)

    def x(self, time_ns: int) -> float:
        """The place of a moment, which is kept inside the chart."""
        share = (time_ns - self.start_ns) / max(self.end_ns - self.start_ns, 1)
        return self.frame.left + min(max(share, 0.0), 1.0) * (self.frame.width - self.frame.left - 8)

    def y(self, actor: str) -> float:
        """The top of an actor's row."""
        return _TOP + self.rows[actor] * self.frame.row

    def chain(self, path: Sequence[Segment]) -> list[tuple[float, float]]:
        """The corners of the critical path: along the middle of each bar, and straight to the next one."""
        points: list[tuple[float, float]] = []
        for segment in path:
            if segment.role != CONTROLLER and segment.actor in self.rows:
                middle = self.y(segment.actor) + self.frame.row / 2
                points += [(self.x(segment.start_ns), middle), (self.x(segment.end_ns), middle)]
        return points


def _grid(svg: ElementTree.Element, drawing: _Drawing, windows: Sequence[StepWindow]) -> None:
    for actor in drawing.rows:
        y = drawing.y(actor)
        _add(svg, "line", _line(drawing.frame.left, y, drawing.frame.width - 8, y, "grid"))
        _text(svg, drawing.frame.left - 8, y + drawing.frame.row / 2 + 4, actor, "tick end")
    free = 0.0
    for window in windows:
        x, label = drawing.x(window.start_ns), f"step {window.step}"
        _add(svg, "line", _line(x, 6, x, drawing.bottom, "grid"))
        if x >= free:
            _text(svg, x + 4, _TOP - 8, label, "tick")
            free = x + 8 + LETTER * len(label)
    _add(
        svg,
        "line",
        _line(drawing.frame.left, drawing.bottom, drawing.frame.width - 8, drawing.bottom, "grid"),
    )
    seconds = (drawing.end_ns - drawing.start_ns) / NANOSECONDS
    every = tick_seconds(seconds, drawing.frame.ticks)
    for index in range(int(seconds / every + 1e-9) + 1):
        x = drawing.x(drawing.start_ns + round(index * every * NANOSECONDS))
        last = x > drawing.frame.width - 40
        label = f"{index * every:.10g} s" if index else "0"
        _text(svg, x, drawing.bottom + 17, label, "tick end" if last else "tick middle")


def tick_seconds(seconds: float, most: int) -> float:
    """The distance between the ticks of an axis: 1, 2 or 5 times a power of ten, so that at most `most`
    intervals fit into `seconds`.

    >>> tick_seconds(8.1, 8), tick_seconds(0.5, 4), tick_seconds(700.0, 8)
    (2.0, 0.2, 100.0)
    """
    size = 10.0**-6
    while True:
        for factor in (1.0, 2.0, 5.0):
            if size * factor * most >= seconds:
                return float(f"{size * factor:.3g}")
        size *= 10


def _bar(svg: ElementTree.Element, drawing: _Drawing, span: ActorSpan) -> None:
    x = drawing.x(span.start_ns)
    box: dict[str, str | float] = {
        "x": round(x, 2),
        "y": drawing.y(span.actor) + 3,
        "width": round(max(drawing.x(span.end_ns) - x, NARROWEST_BAR), 2),
        "height": drawing.frame.row - 6,
        "class": STYLES.get(span.activity, "other"),
    }
    seconds = (span.end_ns - span.start_ns) / NANOSECONDS
    bar = _add(svg, "rect", box)
    _add(bar, "title", {}).text = f"{span.actor}: {span.activity} {seconds:.3g} s, for step {span.step}"


def _order(role: str, actor: str) -> tuple[int, list[tuple[str, int]]]:
    """By role, then by name with numbers in order: rollout-2 before rollout-10."""
    parts = [(text, int(number or -1)) for text, number in re.findall(r"(\D+)(\d*)", actor)]
    return (ROLES.index(role) if role in ROLES else len(ROLES), parts)


def _steps(windows: Sequence[StepWindow]) -> str:
    first, last = windows[0].step, windows[-1].step
    return f"step {first}" if first == last else f"steps {first} to {last}"


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> dict[str, str | float]:
    return {"x1": round(x1, 1), "y1": y1, "x2": round(x2, 1), "y2": y2, "class": style}


def _text(svg: ElementTree.Element, x: float, y: float, text: str, style: str) -> None:
    _add(svg, "text", {"x": round(x, 1), "y": round(y, 1), "class": style}).text = text


def _add(parent: ElementTree.Element, tag: str, attributes: dict[str, str | float]) -> ElementTree.Element:
    return ElementTree.SubElement(parent, tag, {name: str(value) for name, value in attributes.items()})
