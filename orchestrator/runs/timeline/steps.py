"""The time windows of the learner steps, from metrics.jsonl: each ends when its metrics were written and is
`time/step` long. A step that was repeated after a restore has the window of its last repetition.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from orchestrator.clock import NANOSECONDS
from orchestrator.runs.files import whole_lines


@dataclass(frozen=True, slots=True)
class StepWindow:
    """Step `step` (the first is 1) ran from `start_ns` to `end_ns` by the controller's clock."""

    step: int
    start_ns: int
    end_ns: int
    waited_ns: int | None = None
    """How long the trainer waited for its batch (`time/wait_batch`); None if unknown."""

    @property
    def ns(self) -> int:
        """Its length."""
        return self.end_ns - self.start_ns


@dataclass(frozen=True, slots=True)
class StepTimes:
    """The windows of all finished steps in order, and the price that the run has paid on average for an
    accelerator-hour, in the currency of its budget; None if its metrics contain no cost.
    """

    windows: tuple[StepWindow, ...]
    price_per_hour: Decimal | None


def read_steps(metrics: Path) -> StepTimes:
    """Read metrics.jsonl. A missing file has no steps; damaged lines are skipped."""
    windows: dict[int, StepWindow] = {}
    price: Decimal | None = None
    for step, end_ns, values in _lines(metrics):
        while windows and next(reversed(windows)) >= step:  # the run went back to a checkpoint
            windows.popitem()
        seconds = _number(values, "time/step")
        if seconds is not None and seconds > 0:
            waited = _number(values, "time/wait_batch")
            windows[step] = StepWindow(
                step,
                end_ns - round(seconds * NANOSECONDS),
                end_ns,
                None if waited is None else round(waited * NANOSECONDS),
            )
        cost, hours = _number(values, "cost/usd"), _number(values, "cost/accelerator_hours")
        if cost is not None and hours:
            price = Decimal(repr(cost)) / Decimal(repr(hours))
    return StepTimes(tuple(windows[step] for step in sorted(windows)), price)


def _lines(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    for line in whole_lines(path):
        try:
            fields = json.loads(line)
            step, time_ns, metrics = fields["step"], fields["time_ns"], fields["metrics"]
        except (ValueError, KeyError, TypeError):
            continue
        if type(step) is int and type(time_ns) is int and isinstance(metrics, dict):
            yield step, time_ns, metrics


def _number(values: dict[str, Any], name: str) -> float | None:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
