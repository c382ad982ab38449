"""Draws learning curves as PNG for trackers, READMEs and slides, with Matplotlib's
object interface (no global state).

Text is large on purpose, so that the picture of 2400 x 1400 pixels is readable on a
phone that is 390 pixels wide.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.percent import percent
from orchestrator.training.telemetry.curve_layout import (
    Band,
    Panel,
    Series,
    StageCurve,
    layout,
    nice_steps,
    smooth,
    spread,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCHES = (12.0, 7.0)
DOTS_PER_INCH = 200
HELDOUT, TRAIN, REFLECTION = "#0f7b55", "#7c8590", "#8347c4"
INK, FAINT, GRID, BAND = "#1f2328", "#656d76", "#e4e7eb", "#f5f6f8"
SEED_COLOURS = ("#0f7b55", "#2563eb", "#c2410c", "#8347c4", "#0e7490", "#a16207")
TEXT, NOTE = 20, 18
LABEL_MARGIN = 0.32
"""Room for the labels of the curves, to the right of the last step, as a share of the width of the steps."""
LABEL_GAP = 0.085
"""Minimum distance between two labels, in units of the y axis."""
RIGHT_EDGE = 1 / (1 + LABEL_MARGIN)
"""The position of the last step, as a share of the axis."""
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)

Label = tuple[float, str, str]
"""(height, text, colour) of a label."""


def learning_curve_png(stages: Sequence[StageCurve], title: str) -> bytes:
    """Draw held-out accuracy with its 95 % interval, training accuracy and the share of rollouts with
    self-checks over the steps. Stages follow one another, each on its own scale of steps.
    """
    panels = layout(stages)
    figure, axes = _canvas(title, title_gap=58 if len(panels) > 1 else 26)
    ticks: list[tuple[float, str]] = []
    for panel in panels:
        for series, colour in ((panel.stage.train, TRAIN), (panel.stage.reflection, REFLECTION)):
            _line(axes, panel.place(series), colour, 1.2, alpha=0.35)
            _line(axes, panel.place(smooth(series)), colour, 3.6)
        _band(axes, panel)
        _line(axes, panel.place(panel.stage.heldout), HELDOUT, 5.0, dots=True)
        ticks += panel.ticks(5, is_last=panel is panels[-1])
    if len(panels) > 1:
        _mark_stages(axes, panels)
    _write_labels(axes, _end_labels(stages))
    if panels and len(panels[-1].stage.heldout) > 1:
        _label_start(axes, panels[-1])
    axes.set_xticks([x for x, _ in ticks], [text for _, text in ticks])
    return _png(figure)


def seeds_png(
    curves: Mapping[str, Series],
    title: str,
    target: float | None = None,
    bands: Mapping[str, Band] | None = None,
) -> bytes:
    """Draw one curve per seed (or other name) on a common axis of steps, with confidence intervals from
    `bands`. `target` is drawn as a horizontal line.
    """
    figure, axes = _canvas(title, title_gap=26)
    last = max((series[-1][0] for series in curves.values() if series), default=1) or 1
    labels: list[Label] = []
    for index, (name, series) in enumerate(curves.items()):
        colour = SEED_COLOURS[index % len(SEED_COLOURS)]
        _fill(axes, [(step / last, low, high) for step, low, high in (bands or {}).get(name, ())], colour)
        _line(axes, [(step / last, value) for step, value in series], colour, 4.0, dots=True)
        if series:
            labels.append((series[-1][1], f"{name}  {percent(series[-1][1])}", colour))
    if target is not None:
        axes.axhline(target, xmax=RIGHT_EDGE, color=FAINT, linewidth=2, linestyle=(0, (4, 3)))
        labels.append((target, f"target  {percent(target)}", FAINT))
    _write_labels(axes, labels)
    steps = nice_steps(last, 5)
    axes.set_xticks([step / last for step in steps], [f"{step:,}" if step else "step 0" for step in steps])
    return _png(figure)


def lines_png(curves: Mapping[str, Sequence[tuple[float, float]]], title: str) -> bytes:
    """Draw one curve per name over a common axis of any positive quantity, such as seconds or money."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _canvas(title, title_gap=26)
    last = max((points[-1][0] for points in curves.values() if points), default=1.0) or 1.0
    labels: list[Label] = []
    for index, (name, points) in enumerate(curves.items()):
        colour = SEED_COLOURS[index % len(SEED_COLOURS)]
        _line(axes, [(x / last, value) for x, value in points], colour, 4.0, dots=True)
        if points:
            labels.append((points[-1][1], f"{name}  {percent(points[-1][1])}", colour))
    _write_labels(axes, labels)
    ticks = [tick for tick in MaxNLocator(5).tick_values(0.0, last) if 0 <= tick <= last]
    axes.set_xticks([tick / last for tick in ticks], [f"{tick:,g}" for tick in ticks])
    return _png(figure)


def _canvas(title: str, title_gap: int) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    margins = ConstrainedLayoutEngine(w_pad=0.3, h_pad=0.3)
    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, facecolor="white", layout=margins)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=25, fontweight="bold", color=INK, pad=title_gap)
    axes.set_xlim(0, 1 + LABEL_MARGIN)
    axes.set_ylim(0, 1)
    axes.set_yticks(LEVELS, [f"{level:.0%}" for level in LEVELS])
    for level in LEVELS:
        axes.axhline(level, xmax=RIGHT_EDGE, color=GRID, linewidth=1.5, zorder=0.5)
    axes.tick_params(length=0, labelsize=NOTE, labelcolor=FAINT, pad=8)
    axes.tick_params(axis="x", pad=16)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure, axes


def _line(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    colour: str,
    width: float,
    *,
    alpha: float = 1.0,
    dots: bool = False,
) -> None:
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=colour,
        linewidth=width,
        alpha=alpha,
        solid_capstyle="round",
        solid_joinstyle="round",
        clip_on=False,
        marker="o" if dots else "",
        markersize=9,
        markeredgecolor="white",
        markeredgewidth=1.5,
    )


def _band(axes: Axes, panel: Panel) -> None:
    """The confidence interval of held-out accuracy, shaded."""
    _fill(axes, [(panel.x(step), low, high) for step, low, high in panel.stage.heldout_band], HELDOUT)


def _fill(axes: Axes, band: Sequence[tuple[float, float, float]], colour: str) -> None:
    if band:
        x, lows, highs = zip(*band, strict=True)
        axes.fill_between(x, lows, highs, color=colour, alpha=0.16, linewidth=0)


def _mark_stages(axes: Axes, panels: Sequence[Panel]) -> None:
    for index, panel in enumerate(panels):
        if index % 2 == 0:
            axes.axvspan(panel.left, panel.left + panel.width, color=BAND, linewidth=0, zorder=0)
        axes.text(panel.left + 0.012, 1.02, panel.stage.name, fontsize=NOTE, color=FAINT, va="bottom")


def _end_labels(stages: Sequence[StageCurve]) -> list[Label]:
    """Label the curves with their names and last values; for noisy curves, with the last smoothed value."""
    curves = (
        ("held-out", HELDOUT, [stage.heldout for stage in stages]),
        ("training", TRAIN, [smooth(stage.train) for stage in stages]),
        ("self-checks", REFLECTION, [smooth(stage.reflection) for stage in stages]),
    )
    labels: list[Label] = []
    for name, colour, series in curves:
        ends = [points[-1][1] for points in series if points]
        if ends:
            labels.append((ends[-1], f"{name} {percent(ends[-1])}", colour))
    return labels


def _label_start(axes: Axes, panel: Panel) -> None:
    """Label the first point of the last stage with its value."""
    step, value = panel.stage.heldout[0]
    left = panel.left > 0
    axes.annotate(
        percent(value),
        (panel.x(step), value),
        xytext=(-6 if left else 4, 16),
        textcoords="offset points",
        ha="right" if left else "left",
        va="bottom",
        fontsize=TEXT,
        fontweight="bold",
        color=HELDOUT,
    )


def _write_labels(axes: Axes, labels: Iterable[Label]) -> None:
    """Write the labels beside the ends of the curves, moved apart where two ends are close."""
    wanted = list(labels)
    heights = spread([value for value, _, _ in wanted], LABEL_GAP, 0.02, 0.98)
    for (_, text, colour), height in zip(wanted, heights, strict=True):
        axes.text(1.025, height, text, fontsize=TEXT, fontweight="bold", color=colour, va="center")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
