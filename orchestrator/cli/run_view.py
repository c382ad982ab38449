"""Renders a run for a terminal from its reports so far (`RunSnapshot`). Pure functions without a clock."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from statistics import fmean, median

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.cli.sparkline import sparkline
from orchestrator.cli.terminal import printable
from orchestrator.clock import NANOSECONDS
from orchestrator.console.formats import duration, money, sampled_accuracies, short
from orchestrator.runs.metric_intervals import interval_of

SPARKLINE_WIDTH = 36
NARROW_SPARKLINE_WIDTH = 14
ESTIMATE_OVER_STEPS = 30
OUTLIER_FACTOR = 10
"""A step that takes this many times the median (a suspended laptop, a restart) is ignored in estimates."""

HELDOUT, REWARD, REFLECTION = "accuracy/heldout", "reward/mean", "rollout/reflection_fraction"
LOSS, STALENESS, SPEED, COST = "policy/loss", "offpolicy/staleness_mean", "rollout/tokens_per_s", "cost/usd"


@dataclass(frozen=True, slots=True)
class Chart:
    """One sparkline: its metric, label, range of values (None: that of the data) and style."""

    metric: str
    label: str
    bounds: tuple[float, float] | None
    style: str


CHARTS = (
    Chart(HELDOUT, "held-out accuracy", (0.0, 1.0), "green"),
    Chart(REWARD, "reward", None, "cyan"),
    Chart(REFLECTION, "self-checks", (0.0, 1.0), "magenta"),
    Chart(LOSS, "loss", None, "yellow"),
)


@dataclass(slots=True)
class RunSnapshot:
    """What a run has reported so far. All times are nanoseconds of the same clock."""

    title: str
    steps: int
    currency: str
    started_ns: int
    state: str = "running"
    step: int = 0
    cost: Decimal | None = None
    message: str = ""
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    history: dict[str, list[tuple[int, float]]] = field(default_factory=dict[str, list[tuple[int, float]]])
    ends_ns: deque[int] = field(default_factory=lambda: deque[int](maxlen=ESTIMATE_OVER_STEPS + 1))

    def add(self, step: int, at_ns: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a step that ended at `at_ns`. If the step was already reported (before a
        restore), the new report replaces the old one and all later ones.
        """
        again = step <= self.step and self.step > 0
        if again:
            self.ends_ns.clear()
        for name, value in metrics.items():
            series = self.history.setdefault(name, [])
            while again and series and series[-1][0] >= step:
                series.pop()
            series.append((step, value))
        self.step = step
        self.metrics.update(metrics)
        self.ends_ns.append(at_ns)

    def seconds_left(self) -> float | None:
        """Remaining steps x mean duration of recent steps without outliers; None before the second step."""
        ends = list(self.ends_ns)
        lengths = [(after - before) / NANOSECONDS for before, after in itertools.pairwise(ends)]
        if not lengths:
            return None
        typical = [length for length in lengths if length <= OUTLIER_FACTOR * median(lengths)]
        return max(self.steps - self.step, 0) * fmean(typical)


def render(snapshot: RunSnapshot, now_ns: int, width: int) -> RenderableType:
    """Render the live view of a run for a terminal that is `width` columns wide."""
    lines: list[RenderableType] = [_heading(snapshot, now_ns), _bar(snapshot, width)]
    charts = _charts(snapshot, SPARKLINE_WIDTH if width >= 72 else NARROW_SPARKLINE_WIDTH)
    if charts is not None:
        lines += [Text(), charts, Text()]
    facts = _facts(snapshot)
    if facts:
        lines.append(Text(" · ".join(facts), style="dim"))
    if snapshot.message:
        lines.append(Text(printable(snapshot.message)))
    return Group(*lines)


def plain_line(snapshot: RunSnapshot) -> str:
    """Render the same facts as one line without colours, for logs."""
    values = [
        f"{chart.label} {short(snapshot.metrics[chart.metric])}{_bounds(snapshot, chart.metric)}"
        for chart in _shown_charts(snapshot)
        if chart.metric in snapshot.metrics
    ]
    left = snapshot.seconds_left()
    ending = [f"{duration(left)} left"] if left is not None and snapshot.step < snapshot.steps else []
    return "  ".join(
        [snapshot.title, f"step {snapshot.step}/{snapshot.steps}", *values, *_facts(snapshot), *ending]
    )


def _bounds(snapshot: RunSnapshot, metric: str) -> str:
    """The 95 % interval of a share's last value; empty for other metrics."""
    interval = interval_of(metric, snapshot.metrics)
    return f" ({short(interval.low)} to {short(interval.high)})" if interval else ""


def _heading(snapshot: RunSnapshot, now_ns: int) -> RenderableType:
    grid = Table.grid(expand=True)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    grid.add_column(justify="right", no_wrap=True)
    end_ns = now_ns if snapshot.state == "running" or not snapshot.ends_ns else snapshot.ends_ns[-1]
    elapsed = duration(max(end_ns - snapshot.started_ns, 0) / NANOSECONDS)
    grid.add_row(
        Text(printable(snapshot.title), style="bold"), Text(f"{snapshot.state} · {elapsed}", style="dim")
    )
    return grid


def _bar(snapshot: RunSnapshot, width: int) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    left = snapshot.seconds_left()
    row: list[RenderableType] = [
        Text(f"step {snapshot.step}/{snapshot.steps}"),
        ProgressBar(
            total=max(snapshot.steps, 1),
            completed=snapshot.step,
            width=max(min(width - 40, 48), 10),
            complete_style="cyan",
            finished_style="green",
        ),
        Text(f"{100 * snapshot.step // max(snapshot.steps, 1)} %"),
    ]
    if left is not None and snapshot.step < snapshot.steps and snapshot.state == "running":
        row.append(Text(f"{duration(left)} left", style="dim"))
    grid.add_row(*row)
    return grid


def _shown_charts(snapshot: RunSnapshot) -> list[Chart]:
    """The charts that have values. If the reward never changes (a cold start plays back correct answers), the
    loss is shown instead of it.
    """
    rewards = {value for _, value in snapshot.history.get(REWARD, [])}
    hidden = LOSS if len(rewards) > 1 else REWARD
    sampled = [
        Chart(metric, label, (0.0, 1.0), "green") for metric, label in sampled_accuracies(snapshot.history)
    ]
    charts = (CHARTS[0], *sampled, *CHARTS[1:])
    return [chart for chart in charts if snapshot.history.get(chart.metric) and chart.metric != hidden]


def _charts(snapshot: RunSnapshot, width: int) -> RenderableType | None:
    charts = _shown_charts(snapshot)
    if not charts:
        return None
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    for chart in charts:
        points = snapshot.history[chart.metric]
        first, last = points[0][1], points[-1][1]
        change = Text(short(last) + _bounds(snapshot, chart.metric), style="bold")
        if len(points) > 1:
            change = Text.assemble((f"{short(first)} → ", "dim"), change)
        line = sparkline(points, snapshot.step, width, chart.bounds)
        grid.add_row(Text(chart.label), Text(line, style=chart.style), change)
    return grid


def _facts(snapshot: RunSnapshot) -> list[str]:
    facts: list[str] = []
    if snapshot.metrics.get(SPEED):
        facts.append(f"{snapshot.metrics[SPEED]:,.0f} tokens/s")
    if STALENESS in snapshot.metrics:
        facts.append(f"staleness {snapshot.metrics[STALENESS]:.1f}")
    if snapshot.cost is not None:
        facts.append(f"{money(snapshot.cost)} {snapshot.currency}")
    return facts
