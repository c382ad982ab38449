"""The timeline of one run: its spans and steps by one clock, with the explanation of each step."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import yaml

from orchestrator.clock import NANOSECONDS
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.timeline.clocks import align
from orchestrator.runs.timeline.critical_path import Segment, critical_path
from orchestrator.runs.timeline.explanation import RunShape, StepAccount, account, sentence
from orchestrator.runs.timeline.spans import REWARD, ROLLOUT, ActorSpan, read_spool
from orchestrator.runs.timeline.steps import StepWindow, read_steps

RECENT_STEPS = 20
"""The sentence about a run covers this many of its newest steps."""
NO_STEP = "No step has finished yet."
NO_SPANS = "There are no usage spans of these steps, so what the learner waited for is unknown."
MARGIN_NS = 60 * NANOSECONDS
"""How much earlier than the first step spans are read, because the clock of a host may be slow."""
SHOWN_SHIFT_NS = 1_000_000
"""Smaller corrections of clocks are not worth mentioning."""


@dataclass(frozen=True, slots=True)
class TimelineSettings:
    """What the run's config.yaml says about its timeline; None where it cannot be read."""

    max_staleness: int | None = None
    prompts_per_step: int | None = None
    dynamic_sampling: bool = False
    currency: str = ""


@dataclass(frozen=True, slots=True)
class Timeline:
    """The spans and the finished steps of a run."""

    run_id: str
    spans: tuple[ActorSpan, ...]
    """In order of their starts."""
    longest_ns: int
    """The length of the longest span."""
    windows: tuple[StepWindow, ...]
    settings: TimelineSettings
    price_per_hour: Decimal | None
    damaged: int
    """Lines of the usage spool that could not be read."""
    shifts_ns: Mapping[str, int]
    """Corrections of the clocks of hosts, where they are noticeable."""

    def window(self, step: int) -> StepWindow | None:
        """The window of a step; None if it has not finished."""
        return next((window for window in self.windows if window.step == step), None)

    def within(self, start_ns: int, end_ns: int) -> list[ActorSpan]:
        """The spans that overlap a stretch of time, in order of their starts."""
        first = bisect.bisect_left(self.spans, start_ns - self.longest_ns, key=_start_ns)
        last = bisect.bisect_left(self.spans, end_ns, key=_start_ns)
        return [span for span in self.spans[first:last] if span.end_ns > start_ns]

    def path(self, window: StepWindow) -> tuple[Segment, ...]:
        """The critical path of a step; empty if there are no spans of it."""
        spans = self.within(window.start_ns, window.end_ns)
        return critical_path(window, spans, self.settings.dynamic_sampling) if spans else ()

    def explain(self, windows: Sequence[StepWindow]) -> str:
        """What the learner waited for in these steps, in one sentence."""
        accounts: list[StepAccount] = []
        for window in windows:
            spans = self.within(window.start_ns, window.end_ns)
            if spans:
                path = critical_path(window, spans, self.settings.dynamic_sampling)
                accounts.append(account(window, path, spans))
        if not accounts:
            return NO_SPANS if windows else NO_STEP
        return sentence(functools.reduce(StepAccount.__add__, accounts), self._shape(windows))

    def _shape(self, windows: Sequence[StepWindow]) -> RunShape:
        spans = self.within(windows[0].start_ns, windows[-1].end_ns)
        workers = {span.actor: len(span.leases) for span in spans if span.role == ROLLOUT}
        return RunShape(
            rollout_workers=max(len(workers), 1),
            reward_workers=max(len({span.actor for span in spans if span.role == REWARD}), 1),
            accelerators=len({lease for span in spans for lease in span.leases}),
            accelerators_per_rollout_worker=max(workers.values(), default=1),
            prompts_per_step=self.settings.prompts_per_step,
            synchronous=self.settings.max_staleness == 0,
            price_per_hour=self.price_per_hour if self.settings.currency else None,
            currency=self.settings.currency,
        )


def read_timeline(run: RunDirectory, newest_steps: int | None = None, recent_only: bool = False) -> Timeline:
    """Read the timeline of a run, or only that of its newest steps. Missing and damaged files give a shorter
    timeline, never an error.

    `recent_only` bounds the time that this takes for a long run (see `read_spool`).
    """
    steps, settings = read_steps(run.metrics), _settings(run)
    windows = steps.windows if newest_steps is None else steps.windows[-newest_steps:]
    since_ns = windows[0].start_ns - MARGIN_NS if newest_steps is not None and windows else 0
    spool = read_spool(run.ledger, since_ns, recent_only)
    aligned = align(spool.spans, windows, synchronous=settings.max_staleness == 0)
    return Timeline(
        run.run_id,
        aligned.spans,
        max((span.end_ns - span.start_ns for span in aligned.spans), default=0),
        aligned.windows,
        settings,
        steps.price_per_hour,
        spool.damaged,
        {host: ns for host, ns in aligned.shifts_ns.items() if abs(ns) >= SHOWN_SHIFT_NS},
    )


def bottleneck(run: RunDirectory) -> str:
    """What the learner of a run has waited for in its newest steps, in one sentence.

    Empty if no step has finished.
    """
    timeline = read_timeline(run, RECENT_STEPS, recent_only=True)
    return timeline.explain(timeline.windows) if timeline.windows else ""


def timeline_document(timeline: Timeline, window: StepWindow | None) -> dict[str, Any]:
    """One step as `timeline --json` shows it; without a finished step, everything so far."""
    spans = timeline.spans if window is None else timeline.within(window.start_ns, window.end_ns)
    recent = timeline.windows[-RECENT_STEPS:]
    return {
        "run_id": timeline.run_id,
        "step": None if window is None else window.step,
        "seconds": None if window is None else window.ns / 1e9,
        "critical_path": [] if window is None else [_segment(part) for part in timeline.path(window)],
        "sentence": timeline.explain([window] if window is not None else []),
        "rows": [_row(span) for span in spans],
        "recent": {
            "steps": [each.step for each in recent],
            "sentence": timeline.explain(recent),
        },
        "clock_shifts_ns": dict(timeline.shifts_ns),
        "damaged_lines": timeline.damaged,
    }


def _start_ns(span: ActorSpan) -> int:
    return span.start_ns


def _segment(segment: Segment) -> dict[str, Any]:
    return {
        "role": segment.role,
        "activity": segment.activity,
        "actor": segment.actor,
        "start_ns": segment.start_ns,
        "end_ns": segment.end_ns,
    }


def _row(span: ActorSpan) -> dict[str, Any]:
    return {
        "actor": span.actor,
        "role": span.role,
        "activity": span.activity,
        "start_ns": span.start_ns,
        "end_ns": span.end_ns,
        "step": span.step,
        "tokens": span.tokens,
        "attempt": span.attempt,
    }


def _settings(run: RunDirectory) -> TimelineSettings:
    try:
        config: object = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return TimelineSettings()
    return TimelineSettings(
        max_staleness=_integer(_value(config, "max_staleness")),
        prompts_per_step=_integer(_value(config, "rollout", "prompts_per_step")),
        dynamic_sampling=_value(config, "algorithm", "dynamic_sampling") is True,
        currency=str(_value(config, "budget", "currency") or ""),
    )


def _value(config: object, *keys: str) -> object:
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _integer(value: object) -> int | None:
    return value if type(value) is int else None
