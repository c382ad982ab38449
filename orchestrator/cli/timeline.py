"""The command `timeline`: where the time of a step went, who waited for whom, and a trace of the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from orchestrator.cli import terminal
from orchestrator.cli.output import print_json, print_table
from orchestrator.cli.read import ranges
from orchestrator.clock import NANOSECONDS
from orchestrator.errors import ConfigError, StateError
from orchestrator.runs import status as runs
from orchestrator.runs.files import write_atomically
from orchestrator.runs.timeline.critical_path import Segment
from orchestrator.runs.timeline.spans import ActorSpan
from orchestrator.runs.timeline.steps import StepWindow
from orchestrator.runs.timeline.trace import trace_document
from orchestrator.runs.timeline.view import NO_STEP, RECENT_STEPS, Timeline, read_timeline, timeline_document

LETTERS = {
    "load": "l",
    "generate": "g",
    "score": "s",
    "update": "u",
    "sync": "w",
    "checkpoint": "c",
    "evaluate": "e",
}
OTHER, IDLE = "x", "·"
WIDEST = 100
NARROWEST = 20
SHORTEST_SHOWN = 0.005
"""Segments of the critical path that are shorter than this share of the step are not printed."""


def show(reference: str, output_dir: Path, step: int | None, trace: Path | None, as_json: bool) -> int:
    """Explain one step of a run, the newest by default, and with `trace` write all spans to a file. For a
    pipeline, this is its newest stage.
    """
    run = runs.find_run(output_dir, reference)
    newest_only = step is None and trace is None
    timeline = read_timeline(
        runs.leading_stage(run, run.record()), newest_steps=RECENT_STEPS if newest_only else None
    )
    window = _window(timeline, step)
    if trace is not None:
        _write_trace(timeline, trace)
    if as_json:
        print_json(timeline_document(timeline, window))
    elif window is None:
        terminal.say(f"{timeline.run_id}: {NO_STEP}")
    else:
        _print_step(timeline, window)
    if trace is not None:
        terminal.say(f"Wrote {trace}. Open it at https://ui.perfetto.dev.", err=True)
    return 0


def _window(timeline: Timeline, step: int | None) -> StepWindow | None:
    if step is None:
        return timeline.windows[-1] if timeline.windows else None
    window = timeline.window(step)
    if window is None:
        known = ranges([each.step for each in timeline.windows]) or "none yet"
        raise ConfigError("--step", str(step), known, "only steps that have finished have a timeline")
    return window


def _write_trace(timeline: Timeline, path: Path) -> None:
    paths = {window.step: timeline.path(window) for window in timeline.windows}
    document = trace_document(timeline.run_id, timeline.spans, timeline.windows, paths)
    try:
        write_atomically(path, json.dumps(document, separators=(",", ":")))
    except OSError as error:
        raise StateError(f"The trace cannot be written to {path}: {error.strerror or error}.") from error


def _print_step(timeline: Timeline, window: StepWindow) -> None:
    seconds = window.ns / NANOSECONDS
    terminal.say(f"{timeline.run_id}  step {window.step}, {seconds:.4g} s\n")
    terminal.say(timeline.explain([window]))
    recent = timeline.windows[-RECENT_STEPS:]
    if len(recent) > 1:
        terminal.say(timeline.explain(recent))
    for host, ns in timeline.shifts_ns.items():
        terminal.say(f"The clock of host {host[:12]} was corrected by {ns / NANOSECONDS:+.3f} s.")
    if timeline.damaged:
        terminal.say(f"{timeline.damaged} lines of the usage spool are damaged and were left out.")
    spans = timeline.within(window.start_ns, window.end_ns)
    if spans:
        terminal.say("")
        for line in gantt_lines(window, spans, terminal.console().width):
            terminal.say(line)
        terminal.say("\ncritical path")
        _print_path(window, timeline.path(window))


def gantt_lines(window: StepWindow, spans: Sequence[ActorSpan], width: int) -> list[str]:
    """A line for each actor, with a letter for what it did most in each column of time, and a legend."""
    actors = sorted({(span.role, span.actor) for span in spans})
    label = max(len(actor) for _, actor in actors)
    columns = max(min(width - label - 2, WIDEST), NARROWEST)
    lines: list[str] = []
    for _, actor in actors:
        own = [span for span in spans if span.actor == actor]
        bar = "".join(_letter(own, *_column(window, columns, index)) for index in range(columns))
        lines.append(f"{actor.ljust(label)}  {bar}")
    used = {span.activity for span in spans}
    legend = [f"{letter} {activity}" for activity, letter in LETTERS.items() if activity in used]
    legend += [f"{OTHER} other"] if used - LETTERS.keys() else []
    column = window.ns / NANOSECONDS / columns
    return [*lines, f"{' ' * label}  {', '.join(legend)}; one column is {column:.2g} s"]


def _column(window: StepWindow, columns: int, index: int) -> tuple[int, int]:
    return (
        window.start_ns + window.ns * index // columns,
        window.start_ns + window.ns * (index + 1) // columns,
    )


def _letter(spans: Sequence[ActorSpan], start_ns: int, end_ns: int) -> str:
    shares: dict[str, int] = {}
    for span in spans:
        inside = min(span.end_ns, end_ns) - max(span.start_ns, start_ns)
        if inside > 0:
            shares[span.activity] = shares.get(span.activity, 0) + inside
    if not shares:
        return IDLE
    return LETTERS.get(max(shares, key=lambda activity: (shares[activity], activity)), OTHER)


def _print_path(window: StepWindow, path: Sequence[Segment]) -> None:
    shown = [segment for segment in path if segment.ns >= SHORTEST_SHOWN * window.ns]
    rows = [
        (
            f"{(segment.start_ns - window.start_ns) / NANOSECONDS:.3f}",
            f"{segment.ns / NANOSECONDS:.3f}",
            f"{segment.ns / window.ns:.0%}",
            segment.actor,
            segment.activity,
        )
        for segment in shown
    ]
    print_table(("from s", "seconds", "share", "actor", "activity"), rows, "")
    hidden = len(path) - len(shown)
    if hidden:
        left = sum(segment.ns for segment in path if segment not in shown) / window.ns
        terminal.say(f"{hidden} shorter parts, {left:.1%} of the step, are not shown.")
