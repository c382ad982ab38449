"""Where the time of a step went, from the spans that its stages report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.training.stages import Span
from orchestrator.training.usage import Activity

STAGE_ACTIVITIES: dict[str, tuple[Activity, ...]] = {
    "generate": (Activity.GENERATE,),
    "score": (Activity.SCORE,),
    "learn": (Activity.UPDATE, Activity.LOGPROB),
    "sync": (Activity.SYNC,),
    "evaluate": (Activity.EVALUATE,),
    "checkpoint": (Activity.CHECKPOINT,),
}


def covered_ns(spans: Iterable[Span], start_ns: int, end_ns: int) -> int:
    """Nanoseconds between `start_ns` and `end_ns` in which at least one span was open.

    >>> a, b = Span(Activity.GENERATE, 0, 5), Span(Activity.SCORE, 3, 8)
    >>> covered_ns([a, b], 0, 10)
    8
    """
    total, reached = 0, start_ns
    for span in sorted(spans, key=lambda span: span.start_ns):
        begin, end = max(span.start_ns, reached), min(span.end_ns, end_ns)
        if end > begin:
            total += end - begin
            reached = end
    return total


def step_timing(spans: Sequence[Span], start_ns: int, end_ns: int) -> dict[str, float]:
    """`time/*` metrics in seconds: the step, the union of each stage's spans inside it, and what no span
    covers (`time/orchestration`), also as a share of the step.
    """
    wall = end_ns - start_ns
    metrics = {"time/step": wall / 1e9}
    for stage, activities in STAGE_ACTIVITIES.items():
        covered = covered_ns((span for span in spans if span.activity in activities), start_ns, end_ns)
        metrics[f"time/{stage}"] = covered / 1e9
    uncovered = wall - covered_ns(spans, start_ns, end_ns)
    metrics["time/orchestration"] = uncovered / 1e9
    metrics["time/orchestration_fraction"] = uncovered / wall if wall else 0.0
    return metrics
