"""The directory of one run: where each thing lies, and how it is written so that no reader sees half of it.

    <output_dir>/<run id>/
        config.yaml      the resolved config                  manifest.json   commit, versions, digests, seeds
        state.json       what the run is doing (`RunRecord`)   metrics.jsonl   one line a step
        events.jsonl     what happened to its workers          run.log         what the controller logged
        routing.jsonl    expert loads, one line a step (mixtures of experts only)
        rollouts/step-*.parquet    checkpoints/step-*/    ledger/*.jsonl    model/    report.html

One process, the controller, writes it. Files are replaced by rename. Metrics and events are appended to, one
`write` a line, and readers take only lines that end in a newline.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.clock import NANOSECONDS
from orchestrator.errors import ConfigError, RunNotFoundError

if TYPE_CHECKING:
    from orchestrator.training.records import ExpertLoad

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
UNSAFE_IN_RUN_ID = re.compile(r"[^A-Za-z0-9_]+")


class RunState(StrEnum):
    """What a run is doing, or how it ended."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    BUDGET = "budget"
    """Stopped at its hard budget, with a checkpoint."""
    DRAINED = "drained"
    """Asked to stop, with a checkpoint; it can be resumed."""

    @property
    def is_final(self) -> bool:
        """True if nothing goes on by itself."""
        return self not in (RunState.QUEUED, RunState.RUNNING)


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process, for ever: a pid alone is given to another process some day."""

    host: str
    boot_id: str
    pid: int
    start_ticks: int
    """Clock ticks from boot to the start of the process (proc(5), field 22 of stat)."""

    @classmethod
    def current(cls) -> ProcessIdentity:
        """The process that asks."""
        pid = os.getpid()
        return cls(socket.gethostname(), BOOT_ID.read_text().strip(), pid, _start_ticks(pid) or 0)

    def is_alive(self) -> bool | None:
        """Whether the process still runs; None if it ran on another host, which can't be seen from here."""
        if self.host != socket.gethostname():
            return None
        return self.boot_id == BOOT_ID.read_text().strip() and self.start_ticks == _start_ticks(self.pid)


@dataclass(frozen=True, slots=True)
class StageRecord:
    """A stage of a pipeline and the run that carried it out."""

    name: str
    run_id: str | None
    """null: not started."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The content of state.json; times are nanoseconds since the epoch, UTC.

    `pipeline` (a run id) and `stage` (a name) are empty for a run that is no stage, `stages` for no pipeline.
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

    def to_json(self) -> str:
        """One indented JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunRecord:
        """Inverse of `to_json`. Raises ValueError, KeyError or TypeError if `text` is something else."""
        fields: dict[str, Any] = json.loads(text)
        fields["state"] = RunState(fields["state"])
        fields["stages"] = tuple(StageRecord(**stage) for stage in fields["stages"])
        fields["process"] = ProcessIdentity(**fields["process"]) if fields["process"] else None
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class MetricsLine:
    """The metrics of one step."""

    step: int
    time_ns: int
    metrics: Mapping[str, float]


def new_run_id(job: str, at_ns: int) -> str:
    """`YYYYMMDD-HHMMSS-<job>-<4 hex>`, UTC: ids sort by time and can be typed by their first characters."""
    moment = datetime.fromtimestamp(at_ns // NANOSECONDS, UTC)
    return f"{moment:%Y%m%d-%H%M%S}-{UNSAFE_IN_RUN_ID.sub('_', job)}-{secrets.token_hex(2)}"


def write_atomically(path: Path, data: str | bytes) -> None:
    """Replace `path` by `data`: a reader, or a crash at any point, sees the old file or the new one.

    Raises OSError (a full disk, say); the old file is then untouched.
    """
    content = data.encode() if isinstance(data, str) else data
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class RunDirectory:
    """Paths, state and metrics of one run. Making the object touches nothing on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_id = path.name
        self.config = path / "config.yaml"
        self.manifest = path / "manifest.json"
        self.state = path / "state.json"
        self.metrics = path / "metrics.jsonl"
        self.events = path / "events.jsonl"
        self.routing = path / "routing.jsonl"
        self.log = path / "run.log"
        self.rollouts = path / "rollouts"
        self.evaluations = path / "evaluations"
        self.checkpoints = path / "checkpoints"
        self.ledger = path / "ledger"
        self.model = path / "model"
        self.report = path / "report.html"

    def create(self) -> None:
        """Make the directory and its folders. Raises ConfigError if a run of that id is there already."""
        try:
            self.path.mkdir(parents=True)
        except FileExistsError as error:
            raise ConfigError(
                "run_id", self.run_id, "a new run id", "that run exists; resume it or take another id"
            ) from error
        for folder in (self.rollouts, self.checkpoints, self.ledger):
            folder.mkdir()

    def begin(
        self,
        *,
        job: str,
        purpose: str,
        steps: int,
        at_ns: int,
        pipeline: str = "",
        stage: str = "",
        stages: Sequence[str] = (),
    ) -> RunRecord:
        """Say that this process now carries the run out: a first attempt or the next one after an end.

        `stages` are the names of a pipeline's stages, in order. Raises ConfigError if another process still
        carries the run out.
        """
        attempt, started_ns = 1, at_ns
        stage_runs: dict[str, StageRecord] = {}
        if self.state.exists():
            before = self.record()
            self._refuse_if_carried_out(before)
            attempt, started_ns = before.attempt + 1, before.started_ns
            stage_runs = {known.name: known for known in before.stages}
        record = RunRecord(
            run_id=self.run_id,
            job=job,
            purpose=purpose,
            state=RunState.RUNNING,
            why="",
            steps=steps,
            attempt=attempt,
            pipeline=pipeline,
            stage=stage,
            stages=tuple(stage_runs.get(name, StageRecord(name, None)) for name in stages),
            started_ns=started_ns,
            ended_ns=None,
            process=ProcessIdentity.current(),
        )
        write_atomically(self.state, record.to_json())
        return record

    def _refuse_if_carried_out(self, record: RunRecord) -> None:
        process = record.process
        if record.state.is_final or process is None or process == ProcessIdentity.current():
            return
        if process.is_alive():
            hint = f"process {process.pid} is carrying it out; orchestrator stop {self.run_id} ends it"
            raise ConfigError("run", self.run_id, "a run that is not running", hint)

    def write_state(self, state: RunState, why: str, at_ns: int) -> None:
        """Change the state. `why` tells a person what failed or who asked to stop; empty if all is well."""
        ended_ns = at_ns if state.is_final else None
        record = dataclasses.replace(self.record(), state=state, why=why, ended_ns=ended_ns)
        write_atomically(self.state, record.to_json())

    def add_stage(self, name: str, run_id: str) -> None:
        """Say that the run `run_id` carries out the stage `name` of this pipeline, now or again."""
        record = self.record()
        stages = {stage.name: stage for stage in record.stages} | {name: StageRecord(name, run_id)}
        record = dataclasses.replace(record, stages=tuple(stages.values()))
        write_atomically(self.state, record.to_json())

    def record(self) -> RunRecord:
        """What state.json says. Raises RunNotFoundError if there is none, or none that can be read."""
        try:
            return RunRecord.from_json(self.state.read_text(encoding="utf-8"))
        except OSError as error:
            raise RunNotFoundError(
                "run", self.run_id, "a run directory", f"no state.json in {self.path}"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            hint = f"{self.state} is damaged: {error}"
            raise RunNotFoundError("run", self.run_id, "a run directory", hint) from error

    def append_metrics(self, step: int, metrics: Mapping[str, float], at_ns: int) -> None:
        """Add a line to metrics.jsonl. A value that is not finite is written as null: JSON has no NaN."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        _append_line(self.metrics, {"step": step, "time_ns": at_ns, "metrics": finite})

    def append_routing(self, step: int, loads: Sequence[ExpertLoad]) -> None:
        """Add a line to routing.jsonl: each expert's share of its layer's tokens, to four digits."""
        layers = {str(load.layer): [round(share, 4) for share in load.shares] for load in loads}
        _append_line(self.routing, {"step": step, "layers": layers})

    def read_routing(self) -> dict[int, dict[int, list[float]]]:
        """Shares by layer, then by step, in order; of a step that was written twice the later line."""
        found: dict[int, dict[int, list[float]]] = {}
        for line in _whole_lines(self.routing):
            fields = json.loads(line)
            for layer, shares in fields["layers"].items():
                found.setdefault(int(layer), {})[fields["step"]] = shares
        return {layer: dict(sorted(steps.items())) for layer, steps in sorted(found.items())}

    def append_event(self, event: str, fields: Mapping[str, Any], at_ns: int) -> None:
        """Add a line to events.jsonl: what happened (`worker_lost`, ...) and its particulars, plain JSON."""
        _append_line(self.events, {"event": event, "time_ns": at_ns, **fields})

    def read_metrics(self) -> Iterator[MetricsLine]:
        """The lines of metrics.jsonl in the order written, without values that were not finite."""
        for line in _whole_lines(self.metrics):
            fields = json.loads(line)
            metrics = {name: float(value) for name, value in fields["metrics"].items() if value is not None}
            yield MetricsLine(fields["step"], fields["time_ns"], metrics)

    def drop_metrics_after(self, step: int) -> None:
        """Forget what came after `step`, and a line cut short by a crash: a resumed run writes them again."""
        for path in (self.metrics, self.routing):
            if path.exists():
                kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step]
                write_atomically(path, b"".join(kept))


def _append_line(path: Path, fields: Mapping[str, Any]) -> None:
    line = json.dumps(fields, separators=(",", ":"), allow_nan=False) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        written = os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
    if written != len(line.encode()):
        raise OSError(errno.ENOSPC, "the line was cut short", str(path))


def _whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of a log that end in a newline; none if the file is not there."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


def _start_ticks(pid: int) -> int | None:
    """When `pid` started, in ticks since boot; None if there is no such process or it waits to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])
