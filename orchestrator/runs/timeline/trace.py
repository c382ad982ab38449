"""Writes spans as a trace that ui.perfetto.dev and chrome://tracing open.

The format is the JSON of https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU:
complete events (`ph: X`) in microseconds. Each host is a process and each actor a thread of it; the steps and
their critical paths are two threads of a process of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.runs.timeline.critical_path import Segment
from orchestrator.runs.timeline.spans import ActorSpan
from orchestrator.runs.timeline.steps import StepWindow

RUN_PID = 0


def trace_document(
    run_id: str,
    spans: Sequence[ActorSpan],
    windows: Sequence[StepWindow],
    paths: Mapping[int, Sequence[Segment]],
) -> dict[str, Any]:
    """The trace. Its time 0 is the start of the first span or step; `otherData.start_ns` is that moment in
    nanoseconds since the epoch.
    """
    starts = [span.start_ns for span in spans] + [window.start_ns for window in windows]
    zero_ns = min(starts, default=0)
    events = [
        _name("process_name", RUN_PID, 0, run_id),
        _name("thread_name", RUN_PID, 1, "steps"),
        _name("thread_name", RUN_PID, 2, "critical path"),
    ]
    events += [
        _event(f"step {window.step}", "step", window.start_ns, window.ns, zero_ns, RUN_PID, 1)
        for window in windows
    ]
    for step, path in paths.items():
        for segment in path:
            name = f"{segment.actor} {segment.activity}"
            event = _event(name, "critical path", segment.start_ns, segment.ns, zero_ns, RUN_PID, 2)
            events.append(event | {"args": {"step": step}})
    events += _actors(spans, zero_ns)
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"run": run_id, "start_ns": zero_ns}}


def _actors(spans: Sequence[ActorSpan], zero_ns: int) -> Iterator[dict[str, Any]]:
    nodes = {node: pid for pid, node in enumerate(sorted({span.node for span in spans}), RUN_PID + 1)}
    actors = sorted({(span.node, span.role, span.actor) for span in spans})
    threads = {(node, actor): tid for tid, (node, _, actor) in enumerate(actors, 1)}
    for node, pid in nodes.items():
        yield _name("process_name", pid, 0, f"host {node[:12]}" if node else "unknown host")
    for (node, actor), tid in threads.items():
        yield _name("thread_name", nodes[node], tid, actor)
    for span in spans:
        pid, tid = nodes[span.node], threads[span.node, span.actor]
        event = _event(
            span.activity, span.role, span.start_ns, span.end_ns - span.start_ns, zero_ns, pid, tid
        )
        yield event | {"args": {"step": span.step, "tokens": span.tokens, "attempt": span.attempt}}


def _event(
    name: str, category: str, start_ns: int, length_ns: int, zero_ns: int, pid: int, tid: int
) -> dict[str, Any]:
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "ts": (start_ns - zero_ns) / 1000,
        "dur": length_ns / 1000,
        "pid": pid,
        "tid": tid,
    }


def _name(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}
