"""A metric's history as one line of block characters."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from statistics import fmean

BARS = " ▁▂▃▄▅▆▇█"


def sparkline(
    points: Sequence[tuple[int, float]], last: int, width: int, bounds: tuple[float, float] | None = None
) -> str:
    """Draw `points` (step, value) over the steps 0 to `last` in at most `width`
    characters; empty without points.

    Each character is the mean of the values at its steps or, if there are none, the last value
    before them, so that charts of metrics that are measured at different steps line up. It is blank
    before the first point.

    >>> sparkline([(0, 0.0), (2, 1.0), (3, 2.0)], last=3, width=4)
    '▁▁▅█'
    """
    if not points:
        return ""
    columns = list(_columns(points, last, width))
    values = [value for value in columns if value is not None]
    low, high = bounds or (min(values), max(values))
    top = len(BARS) - 1
    return "".join(" " if value is None else BARS[_level(value, low, high, top)] for value in columns)


def _columns(points: Sequence[tuple[int, float]], last: int, width: int) -> Iterator[float | None]:
    steps = [step for step, _ in points]
    count = min(width, last + 1)
    edges = [(last + 1) * index // count for index in range(count + 1)]
    for first, end in itertools.pairwise(edges):
        begin, after = bisect_right(steps, first - 1), bisect_right(steps, end - 1)
        if begin < after:
            yield fmean(value for _, value in points[begin:after])
        else:
            yield points[begin - 1][1] if begin else None


def _level(value: float, low: float, high: float, top: int) -> int:
    share = (value - low) / (high - low) if high > low else 0.0
    return 1 + round(min(max(share, 0.0), 1.0) * (top - 1))
