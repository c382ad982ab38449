"""The layout of learning curves: arithmetic shared by PNG pictures and HTML reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

Series = Sequence[tuple[int, float]]
"""(step, value), by step."""
Band = Sequence[tuple[int, float, float]]
"""(step, low, high) of a confidence interval, by step."""

NARROWEST_STAGE = 0.2
EARLIER_STAGES = 0.34
"""The largest share of the x axis that all stages before the last one may take together."""


@dataclass(frozen=True, slots=True)
class StageCurve:
    """The measurements of one stage, each as (step, share between 0 and 1). Any of them may be empty."""

    name: str
    heldout: Series = field(default=())
    train: Series = field(default=())
    reflection: Series = field(default=())
    heldout_band: Band = field(default=())
    """The confidence intervals of `heldout`."""

    @property
    def last_step(self) -> int:
        """The newest step with a measurement; at least 1."""
        ends = (series[-1][0] for series in (self.heldout, self.train, self.reflection) if series)
        return max(ends, default=1) or 1


@dataclass(frozen=True, slots=True)
class Panel:
    """The part of the x axis, from 0 to 1, that shows a stage."""

    stage: StageCurve
    left: float
    width: float

    def x(self, step: float) -> float:
        """The position of a step on the axis."""
        return self.left + self.width * step / self.stage.last_step

    def place(self, series: Series) -> list[tuple[float, float]]:
        """The points of a series on the axis."""
        return [(self.x(step), value) for step, value in series]

    def ticks(self, count: int, *, is_last: bool) -> list[tuple[float, str]]:
        """About `count` round step numbers. The last tick of a stage is omitted if the
        next stage begins there with 0.
        """
        steps = nice_steps(self.stage.last_step, count if is_last else 2)
        kept = [step for step in steps if is_last or step <= 0.6 * self.stage.last_step]
        return [(self.x(step), f"{step:,}" if step else "step 0") for step in kept]


def layout(stages: Sequence[StageCurve]) -> list[Panel]:
    """One panel per stage, side by side. The last one gets most of the axis, so that a cold start of a
    thousand steps does not leave too little room for the reinforcement learning after it.
    """
    if not stages:
        return []
    total = sum(stage.last_step for stage in stages)
    widths = [max(stage.last_step / total, NARROWEST_STAGE) for stage in stages[:-1]]
    scale = min(1.0, EARLIER_STAGES / sum(widths)) if widths else 1.0
    widths = [width * scale for width in widths]
    widths.append(1.0 - sum(widths))
    lefts = [0.0, *accumulate(widths)]
    return [Panel(stage, left, width) for stage, left, width in zip(stages, lefts[:-1], widths, strict=True)]


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move the values as little as necessary, so that they are `gap` apart and between `low` and
    `high`. Keeps the order.

    >>> [round(value, 2) for value in spread([0.5, 0.52, 0.9], 0.1, 0.0, 1.0)]
    [0.46, 0.56, 0.9]
    """
    order = sorted(range(len(values)), key=lambda index: values[index])
    placed = [values[index] for index in order]
    for _ in range(50 * len(placed)):  # relaxation: a round moves both of every pair that is too close
        for lower, upper in pairwise(range(len(placed))):
            missing = gap - (placed[upper] - placed[lower])
            if missing > 0:
                placed[lower] -= missing / 2
                placed[upper] += missing / 2
        placed = [min(max(value, low), high) for value in placed]
    result = [0.0] * len(values)
    for index, value in zip(order, placed, strict=True):
        result[index] = value
    return result


def smooth(series: Series) -> list[tuple[int, float]]:
    """A centred moving average over about a twentieth of the points, shorter at the ends.
    Short series are unchanged.

    >>> smooth([(1, 0.0), (2, 1.0)])
    [(1, 0.0), (2, 1.0)]
    """
    reach = len(series) // 40
    sums = [0.0, *accumulate(value for _, value in series)]
    result: list[tuple[int, float]] = []
    for index, (step, _) in enumerate(series):
        first, end = max(index - reach, 0), min(index + reach + 1, len(series))
        result.append((step, (sums[end] - sums[first]) / (end - first)))
    return result


def nice_steps(last: int, count: int) -> list[int]:
    """Round step numbers from 0 to `last`, at most `count` of them after 0.

    >>> nice_steps(180, 5), nice_steps(7, 5)
    ([0, 50, 100, 150], [0, 2, 4, 6])
    """
    unit = 1
    while last / unit > count:
        unit = next(larger for larger in _nice_units(unit) if larger > unit)
    return list(range(0, last + 1, unit))


def _nice_units(unit: int) -> list[int]:
    power = 10 ** (len(str(unit)) - 1)
    return [power, 2 * power, 5 * power, 10 * power]


def thin(series: Series, count: int) -> list[tuple[int, float]]:
    """Reduce a series to at most `count` points, each the mean of its neighbours. The first and
    last point are unchanged.

    >>> thin([(0, 0.0), (1, 1.0), (2, 3.0), (3, 4.0)], 3)
    [(0, 0.0), (2, 2.0), (3, 4.0)]
    """
    if len(series) <= max(count, 2):
        return list(series)
    first, *inner, last = series
    edges = [len(inner) * index // (count - 2) for index in range(count - 1)]
    bins = [inner[start:end] for start, end in pairwise(edges)]
    return [first, *(_middle(points) for points in bins if points), last]


def _middle(points: Series) -> tuple[int, float]:
    return points[len(points) // 2][0], sum(value for _, value in points) / len(points)
