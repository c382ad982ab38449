"""The learning rate of a step: linear warm-up, followed by the configured schedule."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate(
    step: int, *, steps: int, peak: float, final: float, warmup_steps: int, schedule: Schedule
) -> float:
    """The learning rate of step `step` (from 0) of `steps`. A pure function, so a resumed run
    needs no scheduler state.

    Warm-up: step k of W has peak (k + 1) / W, so that the first step moves and step W is at the peak. After
    it `constant` stays at the peak; `linear` and `cosine` fall from the peak at step W to `final` at the last
    step, `steps` - 1, and stay there.

    >>> [learning_rate(k, steps=5, peak=1.0, final=0.0, warmup_steps=2, schedule="linear") for k in range(5)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    decay_steps = steps - 1 - warmup_steps
    progress = min(1.0, (step - warmup_steps) / decay_steps) if decay_steps > 0 else 1.0
    if schedule == "linear":
        return peak + (final - peak) * progress
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))
