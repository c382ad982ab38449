"""Profiles a training step: its wall time from one span to the next, and CPU seconds by process.

    python benchmarks/step_profile.py [--steps 16] [--model FOLDER] [OVERRIDE ...]

Uses the same run as `vs_trl.py` (64 prompts x 8, two rollout workers, two learner ranks). The figures
come from its metrics and the usage spans in its ledger, which every run writes. They are medians over all
steps except the first two.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from trl_settings import LAYOUT, NOT_TIMED, SAME_FOR_BOTH, stage_overrides
from vs_trl import CACHE, cold_start, orchestrator_run

from orchestrator.config.compose import quoted
from orchestrator.runs.directory import RunDirectory

WARM_UP = 2


@dataclass(frozen=True, slots=True)
class Span:
    """A span of an actor, from its ledger spool."""

    start_ns: int
    end_ns: int
    actor: str
    activity: str


def spans_of(run: RunDirectory) -> list[Span]:
    """Read all spans of a run."""
    events = [json.loads(line) for file in (run.path / "ledger").glob("*.jsonl") for line in file.open()]
    return [
        Span(event["start_ns"], event["end_ns"], event["actor"], event["activity"])
        for event in events
        if event["type"] == "span_recorded"
    ]


def phases(spans: Sequence[Span], start_ns: int, end_ns: int) -> dict[str, float]:
    """Split the step from `start_ns` to `end_ns` into phases, in milliseconds, which add up to the step."""
    inside = [span for span in spans if start_ns <= span.start_ns and span.end_ns <= end_ns]

    def of(activity: str) -> list[Span]:
        return [span for span in inside if span.activity == activity]

    generate, score, update = of("generate"), of("score"), of("update")
    publish = [span for span in of("sync") if span.actor.startswith("learner")]
    moments = [
        ("report, next request, weights pulled", start_ns),
        ("generate", min(span.start_ns for span in generate)),
        ("score the last rollouts", max(span.end_ns for span in generate)),
        ("send the batch to the ranks", max(span.end_ns for span in score)),
        ("update", min(span.start_ns for span in update)),
        ("publish weights", max(span.end_ns for span in update)),
        ("report", max(span.end_ns for span in publish)),
        ("", end_ns),
    ]
    return {name: (after - at) / 1e6 for (name, at), (_, after) in pairwise(moments)}


def main() -> int:
    """Run, read and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder to start from")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    arguments = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    model = quoted(str(arguments.model or cold_start()))
    fixed = (f"model.path={model}", f"steps={arguments.steps}", *SAME_FOR_BOTH, *NOT_TIMED, *LAYOUT)
    run, meter = orchestrator_run("grpo", (*stage_overrides("grpo"), *fixed, *arguments.overrides))

    ends = [line.time_ns for line in run.read_metrics() if line.step >= WARM_UP]
    spans = spans_of(run)
    steps = [phases(spans, start, end) for start, end in pairwise(ends)]
    whole = median((end - start) / 1e6 for start, end in pairwise(ends))
    print(f"{'wall time of a step':<40}{whole:>10.1f} ms")
    for name in steps[0]:
        milliseconds = median(step[name] for step in steps)
        print(f"  {name:<38}{milliseconds:>10.1f} ms {milliseconds / whole:>6.1%}")
    used = meter.by_process(ends[0], ends[-1])
    count = len(ends) - 1
    print(f"{'CPU of a step, all processes':<40}{sum(used.values()) / count:>10.3f} s")
    for name, seconds in sorted(used.items(), key=lambda item: -item[1]):
        if seconds / count >= 0.001:
            print(f"  {name:<38}{seconds / count:>10.3f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
