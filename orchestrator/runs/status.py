"""Reads runs from their directories: finds them, and returns their state and metrics. Writes nothing.

Scripts rely on the keys of the dictionaries. Times are ISO 8601 in UTC.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.clock import NANOSECONDS
from orchestrator.errors import RunNotFoundError
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.lease import seconds_silent
from orchestrator.runs.metric_intervals import interval_of
from orchestrator.runs.record import RunRecord, RunState, WaitRecord
from orchestrator.runs.timeline.view import bottleneck

LATEST = "latest"
SILENT_SECONDS_SHOWN_AS_FAILED = 120.0
"""A run on another machine is shown as failed after this long without a heartbeat. Whether it may be taken
over is decided only by `resume`, which does not compare clocks.
"""
HISTORY = (
    "reward/mean",
    "accuracy/heldout",
    "accuracy/train",
    "policy/loss",
    "rollout/reflection_fraction",
    "rollout/length_mean",
)
"""The metrics whose history `status` shows."""
SAMPLED = "eval/"
"""Prefix of further metrics that it shows. Their names depend on how many held-out answers are sampled."""


def find_run(output_dir: Path, reference: str) -> RunDirectory:
    """The run that `reference` names: an id, its unique beginning, a path, or `latest`.

    A stage is named in full: a beginning that it shares with its pipeline, and `latest`, mean the pipeline.

    Raises RunNotFoundError if there is none, or more than one.
    """
    if "/" in reference:
        return _existing(RunDirectory(Path(reference)))
    if reference and (output_dir / reference / "state.json").exists():
        return RunDirectory(output_dir / reference)
    runs = records(output_dir)
    if reference == LATEST:
        runs = [run for run in runs if not run.pipeline][:1]
    else:
        runs = [run for run in runs if run.run_id.startswith(reference)]
        pipelines = {run.run_id for run in runs}
        runs = [run for run in runs if run.pipeline not in pipelines]
    if len(runs) == 1:
        return RunDirectory(output_dir / runs[0].run_id)
    if runs:
        allowed = ", ".join(run.run_id for run in runs[:5])
        raise RunNotFoundError(
            "run", reference, allowed, f"{len(runs)} runs begin like this: type more of the id"
        )
    known = ", ".join(run.run_id for run in records(output_dir)[:5]) or "none yet"
    hint = f"runs are looked for in {output_dir}; --output-dir changes that"
    raise RunNotFoundError("run", reference, known, hint)


def records(output_dir: Path) -> list[RunRecord]:
    """The state of every run in `output_dir`, as `observe` sees it, newest first, without damaged ones."""
    found: list[RunRecord] = []
    for path in output_dir.glob("*/state.json"):
        try:
            found.append(observe(RunDirectory(path.parent)))
        except RunNotFoundError:
            continue
    return sorted(found, key=lambda record: (record.started_ns, record.run_id), reverse=True)


def observe(run: RunDirectory) -> RunRecord:
    """The recorded state of a run, except that a run whose process is gone counts as failed.

    Raises RunNotFoundError if the directory holds no run.
    """
    record = run.record()
    process = record.process
    if record.state is not RunState.RUNNING or process is None:
        return record
    alive, who = process.is_alive(), f"process {process.pid} on {process.host}"
    if alive is None:
        silent = seconds_silent(run.lease)
        if silent is None or silent < SILENT_SECONDS_SHOWN_AS_FAILED:
            return record
        found = f"No heartbeat from {who} for {round(silent)} s"
    elif alive:
        return record
    else:
        found = f"The {who} is gone"
    why = f"{found}. Continue from the last checkpoint with: orchestrator resume {run.run_id}"
    ended_ns = _last_sign_of_life_ns(run)
    return replace(record, state=RunState.FAILED, why=why, ended_ns=ended_ns, waiting=())


@dataclass(frozen=True, slots=True)
class Progress:
    """The metrics of a run: its newest step, the newest value of each metric, and the
    history of some metrics.
    """

    step: int
    metrics: dict[str, float]
    history: dict[str, list[tuple[int, float]]]


def history(run: RunDirectory) -> dict[str, list[tuple[int, float]]]:
    """The history of every metric. If a step was written twice, for example after a resume,
    the later value counts.
    """
    courses: dict[str, dict[int, float]] = {}
    for line in run.read_metrics():
        for name, value in line.metrics.items():
            courses.setdefault(name, {})[line.step] = value
    return {name: sorted(course.items()) for name, course in courses.items()}


def progress(run: RunDirectory, names: Sequence[str] = HISTORY) -> Progress:
    """The newest step and metrics, and the history of `names` and of the metrics of
    sampled held-out answers.
    """
    step, metrics = 0, dict[str, float]()
    for line in run.read_metrics():
        step = line.step
        metrics.update(line.metrics)
    courses = history(run)
    shown = [*names, *(name for name in courses if name.startswith(SAMPLED) and name not in names)]
    return Progress(step, metrics, {name: courses.get(name, []) for name in shown})


def summary(record: RunRecord) -> dict[str, Any]:
    """One run as `runs --json` lists it."""
    return {
        "run_id": record.run_id,
        "job": record.job,
        "state": record.state.value,
        "purpose": record.purpose,
        "started": iso(record.started_ns),
        "ended": None if record.ended_ns is None else iso(record.ended_ns),
        "why": record.why,
        "attempt": record.attempt,
        "pipeline": record.pipeline or None,
        "stage": record.stage or None,
    }


def status_document(run: RunDirectory) -> dict[str, Any]:
    """One run as `status --json` shows it; a pipeline shows the step and metrics of its newest stage."""
    record = observe(run)
    leading = leading_stage(run, record)
    at, workers = progress(leading), workers_document(leading)
    shown: dict[str, Any] = {
        "run_id": record.run_id,
        "job": record.job,
        "state": record.state.value,
        "why": record.why,
        "step": at.step,
        "steps": observe(leading).steps,
        "metrics": at.metrics,
        "history": {name: [list(point) for point in course] for name, course in at.history.items()},
        "intervals": {
            name: list(interval) for name in at.metrics if (interval := interval_of(name, at.metrics))
        },
        "warnings": list(leading.read_events("training_warning")),
        "bottleneck": bottleneck(leading),
        "workers": {name: workers[name] for name in ("wanted", "running", "min_workers")},
        "waiting": [_wait(wait) for wait in observe(leading).waiting],
        "purpose": record.purpose,
        "started": iso(record.started_ns),
        "ended": None if record.ended_ns is None else iso(record.ended_ns),
        "attempt": record.attempt,
        "directory": str(run.path),
    }
    if record.stages:
        shown["stages"] = [
            {"name": stage.name, "run_id": stage.run_id, "state": _stage_state(run, stage.run_id).value}
            for stage in record.stages
        ]
    return shown


def workers_document(run: RunDirectory) -> dict[str, Any]:
    """The rollout workers of a run as `workers --json` shows them; a run that does not train has none."""
    record = observe(run)
    written = _written_workers(run) if record.state is RunState.RUNNING else {}
    workers = written.get("workers", [])
    return {
        "run_id": record.run_id,
        "state": record.state.value,
        "wanted": written.get("wanted", 0),
        "running": sum(each["state"] == "running" for each in workers),
        "min_workers": written.get("min_workers", 0),
        "workers": [
            {
                "name": each["name"],
                "state": each["state"],
                "since": iso(each["since_ns"]),
                "permanent": each["permanent"],
                "detail": each["detail"],
            }
            for each in workers
        ],
    }


def _written_workers(run: RunDirectory) -> dict[str, Any]:
    """The content of workers.json; empty if there is none, or none that can be read."""
    try:
        found: Any = json.loads(run.workers.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def _wait(wait: WaitRecord) -> dict[str, Any]:
    """A wait as `status --json` shows it. Its length so far is by this machine's clock."""
    return {
        "what": wait.what,
        "where": wait.where,
        "since": iso(wait.since_ns),
        "seconds": max(time.time_ns() - wait.since_ns, 0) / NANOSECONDS,
        "usual_seconds": wait.usual_seconds,
        "text": wait.text,
    }


def leading_stage(run: RunDirectory, record: RunRecord) -> RunDirectory:
    """The newest started stage of a pipeline. The run itself if it is not a
    pipeline or no stage has started.
    """
    started = [stage.run_id for stage in record.stages if stage.run_id is not None]
    for run_id in reversed(started):
        stage = run.stage_run(run_id)
        if stage.state.exists():
            return stage
    return run


def iso(time_ns: int) -> str:
    """`2026-11-24T06:57:08Z`."""
    return datetime.fromtimestamp(time_ns // NANOSECONDS, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _existing(run: RunDirectory) -> RunDirectory:
    run.record()
    return run


def _stage_state(run: RunDirectory, run_id: str | None) -> RunState:
    if run_id is None:
        return RunState.QUEUED
    try:
        return observe(run.stage_run(run_id)).state
    except RunNotFoundError:
        return RunState.QUEUED


def _last_sign_of_life_ns(run: RunDirectory) -> int:
    logs = (run.state, run.metrics, run.events, run.log)
    return max(path.stat().st_mtime_ns for path in logs if path.exists())
