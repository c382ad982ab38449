"""A run as a terminal shows it: its reports so far (`Course`), drawn as lines of text. Pure:
it has no clock.
"""

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
from orchestrator.runs.intervals import interval_of

SPARKLINE_WIDTH = 36
NARROW_SPARKLINE_WIDTH = 14
ESTIMATE_OVER_STEPS = 30
HICCUP = 10
"""A step this many times as long as the median one (a suspended laptop, a restart) says nothing
about the next ones.
"""

HELDOUT, REWARD, REFLECTION = "accuracy/heldout", "reward/mean", "rollout/reflection_fraction"
LOSS, STALENESS, SPEED, COST = "policy/loss", "offpolicy/staleness_mean", "rollout/tokens_per_s", "cost/usd"


@dataclass(frozen=True, slots=True)
class Chart:
    """One sparkline: its metric, its name for people, the range it is drawn on (None: its own), its style."""

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
class Course:
    """What a run has reported so far. Times are nanoseconds of one clock."""

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
        """The metrics of a step that ended at `at_ns`. A step that is reported again (after a restore) takes
        the place of the older report and of what came after it.
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
        """Steps left x the mean length of the last ones, without hiccups; None before two steps ended."""
        ends = list(self.ends_ns)
        lengths = [(after - before) / NANOSECONDS for before, after in itertools.pairwise(ends)]
        if not lengths:
            return None
        typical = [length for length in lengths if length <= HICCUP * median(lengths)]
        return max(self.steps - self.step, 0) * fmean(typical)


def render(course: Course, now_ns: int, width: int) -> RenderableType:
    """The live view of a run, for a terminal `width` columns wide."""
    lines: list[RenderableType] = [_heading(course, now_ns), _bar(course, width)]
    charts = _charts(course, SPARKLINE_WIDTH if width >= 72 else NARROW_SPARKLINE_WIDTH)
    if charts is not None:
        lines += [Text(), charts, Text()]
    facts = _facts(course)
    if facts:
        lines.append(Text(" · ".join(facts), style="dim"))
    if course.message:
        lines.append(Text(printable(course.message)))
    return Group(*lines)


def plain_line(course: Course) -> str:
    """The same in one line without colours, for a log."""
    values = [
        f"{chart.label} {short(course.metrics[chart.metric])}{_bounds(course, chart.metric)}"
        for chart in _shown_charts(course)
        if chart.metric in course.metrics
    ]
    left = course.seconds_left()
    ending = [f"{duration(left)} left"] if left is not None and course.step < course.steps else []
    return "  ".join([course.title, f"step {course.step}/{course.steps}", *values, *_facts(course), *ending])


def _bounds(course: Course, metric: str) -> str:
    """The 95 % interval of a share's last value; empty for other metrics."""
    interval = interval_of(metric, course.metrics)
    return f" ({short(interval.low)} to {short(interval.high)})" if interval else ""


def _heading(course: Course, now_ns: int) -> RenderableType:
    grid = Table.grid(expand=True)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    grid.add_column(justify="right", no_wrap=True)
    end_ns = now_ns if course.state == "running" or not course.ends_ns else course.ends_ns[-1]
    elapsed = duration(max(end_ns - course.started_ns, 0) / NANOSECONDS)
    grid.add_row(
        Text(printable(course.title), style="bold"), Text(f"{course.state} · {elapsed}", style="dim")
    )
    return grid


def _bar(course: Course, width: int) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    left = course.seconds_left()
    row: list[RenderableType] = [
        Text(f"step {course.step}/{course.steps}"),
        ProgressBar(
            total=max(course.steps, 1),
            completed=course.step,
            width=max(min(width - 40, 48), 10),
            complete_style="cyan",
            finished_style="green",
        ),
        Text(f"{100 * course.step // max(course.steps, 1)} %"),
    ]
    if left is not None and course.step < course.steps and course.state == "running":
        row.append(Text(f"{duration(left)} left", style="dim"))
    grid.add_row(*row)
    return grid


def _shown_charts(course: Course) -> list[Chart]:
    """Those with values. Where the reward never moves (a cold start plays back right answers), the
    loss tells more.
    """
    rewards = {value for _, value in course.history.get(REWARD, [])}
    hidden = LOSS if len(rewards) > 1 else REWARD
    sampled = [
        Chart(metric, label, (0.0, 1.0), "green") for metric, label in sampled_accuracies(course.history)
    ]
    charts = (CHARTS[0], *sampled, *CHARTS[1:])
    return [chart for chart in charts if course.history.get(chart.metric) and chart.metric != hidden]


def _charts(course: Course, width: int) -> RenderableType | None:
    charts = _shown_charts(course)
    if not charts:
        return None
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    for chart in charts:
        points = course.history[chart.metric]
        first, last = points[0][1], points[-1][1]
        change = Text(short(last) + _bounds(course, chart.metric), style="bold")
        if len(points) > 1:
            change = Text.assemble((f"{short(first)} → ", "dim"), change)
        line = sparkline(points, course.step, width, chart.bounds)
        grid.add_row(Text(chart.label), Text(line, style=chart.style), change)
    return grid


def _facts(course: Course) -> list[str]:
    facts: list[str] = []
    if course.metrics.get(SPEED):
        facts.append(f"{course.metrics[SPEED]:,.0f} tokens/s")
    if STALENESS in course.metrics:
        facts.append(f"staleness {course.metrics[STALENESS]:.1f}")
    if course.cost is not None:
        facts.append(f"{money(course.cost)} {course.currency}")
    return facts
