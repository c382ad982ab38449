"""The confidence intervals of the shares that a run measures, from its metrics."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from orchestrator.confidence_intervals import Interval, wilson_interval

SAMPLE_SIZES = {
    "accuracy/heldout": "accuracy/heldout_n",
    "accuracy/train": "accuracy/train_n",
    "rollout/reflection_fraction": "rollout/reflection_n",
    "rollout/truncated_fraction": "rollout/truncated_n",
    "heldout/reflection_fraction": "heldout/count",
    "heldout/truncated_fraction": "heldout/count",
}
"""The metric that holds the sample size of a share."""
SAMPLED = re.compile(r"eval/(pass|maj)_at_\d+")

Series = Sequence[tuple[int, float]]


def sample_size_of(metric: str) -> str | None:
    """The metric that holds the sample size of `metric`; None if it is not a share."""
    return "heldout/count" if SAMPLED.fullmatch(metric) else SAMPLE_SIZES.get(metric)


def interval_of(metric: str, metrics: Mapping[str, float]) -> Interval | None:
    """The 95 % interval of a share among `metrics`; None for other metrics, and for shares without a size.

    >>> metrics = {"accuracy/heldout": 255 / 256, "accuracy/heldout_n": 256}
    >>> [round(bound, 3) for bound in interval_of("accuracy/heldout", metrics)]
    [0.978, 0.999]
    """
    size = sample_size_of(metric)
    if size is None or metric not in metrics or metrics.get(size, 0.0) <= 0:
        return None
    # A mean of floats may be 1 + 1e-16.
    return wilson_interval(min(max(metrics[metric], 0.0), 1.0), metrics[size])


def band_of(metric: str, history: Mapping[str, Series]) -> list[tuple[int, float, float]]:
    """(step, low, high) of a share at each step at which its sample size is known."""
    sizes = dict(history.get(sample_size_of(metric) or "", ()))
    band: list[tuple[int, float, float]] = []
    for step, share in history.get(metric, ()):
        if sizes.get(step, 0.0) > 0:
            low, high = wilson_interval(min(max(share, 0.0), 1.0), sizes[step])
            band.append((step, low, high))
    return band
