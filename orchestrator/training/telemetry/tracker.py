"""The Tracker port: where a run's metrics, parameters and artifacts go, to be looked at and compared. And its
in-memory twin.

A tracker is for people. It may lose records and only warns: what a run must not lose is in its run directory
and in the usage events.
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
"""How a run ended, in the words of `orchestrator runs`."""


class TrackerUnavailableError(OrchestratorError):
    """The tracking server can't be reached or can't answer now: the same call may succeed later."""


class TrackerRefusedError(OrchestratorError):
    """The tracking server will never take this record: trying again is useless."""


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Which run this is. A tracker finds the run by `run_id` again after a resume, and its parent by
    `parent_run_id` (the pipeline's run id; None if the run is no stage of a pipeline).
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
    """The metrics of one step and when they were measured (nanoseconds since the epoch): a line
    of metrics.jsonl.
    """

    step: int
    time_ns: int
    metrics: Mapping[str, float]


class Tracker(Protocol):
    """One run's place in a tracking system. `start` comes first, `finish` last, everything else between them.

    Each metric has one value a step, in whatever order the steps arrive: a row that is logged again, by a
    resumed run or a replay of metrics.jsonl, changes nothing. Raises TrackerUnavailableError where trying
    again may help and TrackerRefusedError where it will not."""

    def start(self, identity: RunIdentity) -> None:
        """Open the run: a new one, or the one that `run_id` had before it was interrupted."""
        ...

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of `step`, measured now."""
        ...

    def log_rows(self, rows: Sequence[MetricRow]) -> None:
        """The metrics of several steps at once, each with its own time."""
        ...

    def log_params(self, params: Mapping[str, Any]) -> None:
        """The resolved config, as nested as it is. A parameter that the run has already keeps
        its first value.
        """
        ...

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Upload the file into `folder` of the run's artifacts, over an older one of its name."""
        ...

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table of a few rollouts of `step`, to read."""
        ...

    def set_tag(self, key: str, value: str) -> None:
        """Set or replace a tag."""
        ...

    def finish(self, outcome: Outcome) -> None:
        """Close the run. `drained` and `budget` runs may be started again."""
        ...


def tracking_key(name: str) -> str:
    """A metric's name as every tracker takes it: `@` reads `_at_`, and what is not a letter, digit, or one of
    `_-. :/` reads `_`.

    >>> tracking_key("reward/pass@1")
    'reward/pass_at_1'
    """
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"), flags=re.ASCII)


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters under dotted names; a list is one value.

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
    """Keeps everything in dicts: the fake of the port, for simulations and tests."""

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
        """Open the run, or open it again."""
        self.identity, self.outcome = identity, None
        self.tags |= identity.tags

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of `step`, measured now."""
        self.log_rows([MetricRow(step, self._clock.now_ns(), metrics)])

    def log_rows(self, rows: Sequence[MetricRow]) -> None:
        for row in rows:
            for name, value in row.metrics.items():
                series = self.history.setdefault(tracking_key(name), [])
                if all(step != row.step for step, _ in series):
                    bisect.insort(series, (row.step, value))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """The resolved config; the first value of a parameter stays."""
        self.params = flatten(params) | self.params

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Keep the file's bytes. Raises TrackerRefusedError if there is no such file."""
        if not path.is_file():
            raise TrackerRefusedError(f"artifact {path} is not a file")
        self.artifacts[f"{folder}/{path.name}" if folder else path.name] = path.read_bytes()

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep the rows."""
        self.rollouts[step] = [dict(row) for row in rows]

    def set_tag(self, key: str, value: str) -> None:
        """Set or replace a tag."""
        self.tags[key] = value

    def finish(self, outcome: Outcome) -> None:
        """Close the run."""
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
