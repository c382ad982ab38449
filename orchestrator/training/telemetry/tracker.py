"""The Tracker port, which receives a run's metrics, parameters and artifacts for people to view and compare;
and its in-memory implementation.

A tracker is not a record of truth: it may lose records with a warning. Data that must not be lost is in the
run directory and in the usage events.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from orchestrator.clock import Clock
from orchestrator.errors import OrchestratorError

Outcome = Literal["done", "failed", "budget", "drained"]
"""How a run ended, in the terms of `orchestrator runs`."""


class TrackerUnavailableError(OrchestratorError):
    """The tracking server cannot be reached or cannot answer now. The same call may succeed later."""


class TrackerRefusedError(OrchestratorError):
    """The tracking server will never accept this record. Retrying is useless."""


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Identifies a run. After a resume, a tracker finds the run by `run_id` and its parent by `parent_run_id`
    (the pipeline's run id; None if the run is not a stage of a pipeline).
    """

    run_id: str
    job: str
    purpose: str
    team: str
    project: str
    parent_run_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class MetricRow:
    """The metrics of one step and the time of their measurement (nanoseconds since the
    epoch): a line of metrics.jsonl.
    """

    step: int
    time_ns: int
    metrics: Mapping[str, float]


class Tracker(Protocol):
    """A run in a tracking system. `start` is called first, `finish` last.

    Each metric has one value per step, and steps may arrive in any order. Logging a row again has no effect,
    which makes resumes and replays of metrics.jsonl safe. Raises TrackerUnavailableError if trying again may
    help and TrackerRefusedError if it will not.
    """

    def start(self, identity: RunIdentity) -> None:
        """Open the run: a new one, or the existing one with this `run_id`."""
        ...

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of `step`, measured now."""
        ...

    def log_rows(self, rows: Sequence[MetricRow]) -> None:
        """Log the metrics of several steps at once, each with its own time."""
        ...

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log the resolved config, which may be nested. A parameter that the run
        already has keeps its first value.
        """
        ...

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Upload the file into `folder` of the run's artifacts, replacing an older one of the same name."""
        ...

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log a few rollouts of `step` as a table."""
        ...

    def set_tag(self, key: str, value: str) -> None:
        """Set or replace a tag."""
        ...

    def finish(self, outcome: Outcome) -> None:
        """Close the run. Runs that ended as `drained` or `budget` may be started again."""
        ...


def tracking_key(name: str) -> str:
    """Convert a metric's name to the characters that every tracker accepts: `@` becomes `_at_`, and all
    characters except letters, digits and `_-. :/` become `_`.

    >>> tracking_key("reward/pass@1")
    'reward/pass_at_1'
    """
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"), flags=re.ASCII)


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested parameters to dotted names. A list is a single value.

    >>> flatten({"learner": {"zero_stage": 1, "adam_betas": [0.9, 0.99]}})
    {'learner.zero_stage': '1', 'learner.adam_betas': '[0.9, 0.99]'}
    """
    flat: dict[str, str] = {}
    for key, value in params.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = str(value)
    return flat


class MemoryTracker:
    """Keeps everything in dicts: the in-memory implementation for simulations and tests."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.identity: RunIdentity | None = None
        self.history: dict[str, list[tuple[int, float]]] = {}
        self.params: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.artifacts: dict[str, bytes] = {}
        self.rollouts: dict[int, list[dict[str, Any]]] = {}
        self.outcome: Outcome | None = None

    def start(self, identity: RunIdentity) -> None:
        """Open the run for the first time or again."""
        self.identity, self.outcome = identity, None
        self.tags |= identity.tags

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self.log_rows([MetricRow(step, self._clock.now_ns(), metrics)])

    def log_rows(self, rows: Sequence[MetricRow]) -> None:
        for row in rows:
            for name, value in row.metrics.items():
                series = self.history.setdefault(tracking_key(name), [])
                if all(step != row.step for step, _ in series):
                    bisect.insort(series, (row.step, value))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log the resolved config. The first value of a parameter is kept."""
        self.params = flatten(params) | self.params

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Keep the file's bytes. Raises TrackerRefusedError if there is no such file."""
        if not path.is_file():
            raise TrackerRefusedError(f"artifact {path} is not a file")
        self.artifacts[f"{folder}/{path.name}" if folder else path.name] = path.read_bytes()

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rollouts[step] = [dict(row) for row in rows]

    def set_tag(self, key: str, value: str) -> None:
        self.tags[key] = value

    def finish(self, outcome: Outcome) -> None:
        self.outcome = outcome


class NullTracker:
    """Tracks nothing: `tracking=none`."""

    def start(self, identity: RunIdentity) -> None: ...

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def log_rows(self, rows: Sequence[MetricRow]) -> None: ...

    def log_params(self, params: Mapping[str, Any]) -> None: ...

    def log_artifact(self, path: Path, folder: str = "") -> None: ...

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None: ...

    def set_tag(self, key: str, value: str) -> None: ...

    def finish(self, outcome: Outcome) -> None: ...
