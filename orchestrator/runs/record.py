"""The content of state.json, the state of a run."""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from orchestrator.clock import NANOSECONDS
from orchestrator.runs.process import ProcessIdentity

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""A run id names a folder and is typed on command lines."""
LONGEST_RUN_ID = 200
UNSAFE_IN_RUN_ID = re.compile(r"[^A-Za-z0-9_]+")


class RunState(StrEnum):
    """What a run is doing, or how it ended."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    BUDGET = "budget"
    """Stopped by a budget, with a checkpoint."""
    DRAINED = "drained"
    """Stopped on request, with a checkpoint; it can be resumed."""

    @property
    def is_final(self) -> bool:
        """Whether the run has ended."""
        return self not in (RunState.QUEUED, RunState.RUNNING)

    @property
    def exit_code(self) -> int:
        """The exit code of `orchestrator run`, `resume` and `watch` for a run that ended in this state."""
        return _EXIT_CODES[self]


_EXIT_CODES = {
    RunState.DONE: 0,
    RunState.FAILED: 1,
    RunState.BUDGET: 3,
    RunState.DRAINED: 4,
    RunState.QUEUED: 1,  # a command that waits for the end of a run never sees these two
    RunState.RUNNING: 1,
}


@dataclass(frozen=True, slots=True)
class StageRecord:
    """A stage of a pipeline and the run that executes it."""

    name: str
    run_id: str | None
    """null: not started."""


@dataclass(frozen=True, slots=True)
class WaitRecord:
    """Something that a running run waits for, longer than usual."""

    what: str
    """`generate`, `score`, `slots`, ... (`training.events.WaitKind`)."""
    where: str
    since_ns: int
    usual_seconds: float | None
    text: str
    """The same as a sentence."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The content of state.json; times are nanoseconds since the epoch, UTC.

    `pipeline` (a run id) and `stage` (a name) are set for a stage of a pipeline, `stages` for a pipeline.
    """

    run_id: str
    job: str
    purpose: str
    state: RunState
    why: str
    steps: int
    attempt: int
    pipeline: str
    stage: str
    stages: tuple[StageRecord, ...]
    started_ns: int
    ended_ns: int | None
    process: ProcessIdentity | None
    waiting: tuple[WaitRecord, ...] = ()

    def to_json(self) -> str:
        """One indented JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunRecord:
        """Inverse of `to_json`. Raises ValueError, KeyError or TypeError if `text` is something else.

        Keys that only another version of this program knows are ignored. Run ids in it become paths, so
        anything that is not a run id is refused.
        """
        fields = _known(cls, json.loads(text))
        fields["state"] = RunState(fields["state"])
        fields["stages"] = tuple(StageRecord(**_known(StageRecord, stage)) for stage in fields["stages"])
        waiting = fields.get("waiting", ())
        fields["waiting"] = tuple(WaitRecord(**_known(WaitRecord, wait)) for wait in waiting)
        process = fields["process"]
        fields["process"] = ProcessIdentity(**_known(ProcessIdentity, process)) if process else None
        record = cls(**fields)
        stage_runs = [stage.run_id for stage in record.stages if stage.run_id is not None]
        for run_id in (record.run_id, *stage_runs, *filter(None, [record.pipeline])):
            if not is_run_id(run_id):
                raise ValueError(f"{run_id!r} is not a run id")
        return record


def _known(kind: type[Any], written: dict[str, Any]) -> dict[str, Any]:
    """The fields of the dataclass `kind` that were written. Raises TypeError if `written` is no mapping."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: written[name] for name in names.intersection(written)}


def is_run_id(text: object) -> bool:
    """Whether `text` can name a run: one plain path component of letters, digits, `.`, `_` and `-`."""
    return isinstance(text, str) and len(text) <= LONGEST_RUN_ID and RUN_ID.fullmatch(text) is not None


def new_run_id(job: str, at_ns: int) -> str:
    """`YYYYMMDD-HHMMSS-<job>-<4 hex>`, UTC: ids sort by time and can be typed by their first characters."""
    moment = datetime.fromtimestamp(at_ns // NANOSECONDS, UTC)
    return f"{moment:%Y%m%d-%H%M%S}-{UNSAFE_IN_RUN_ID.sub('_', job)}-{secrets.token_hex(2)}"
