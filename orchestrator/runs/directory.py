"""The directory of one run: its files, and the process that may write them.

    <output_dir>/<run id>/
        config.yaml      the resolved config                  manifest.json   commit, versions, digests, seeds
        state.json       what the run is doing (`RunRecord`)   metrics.jsonl   one line per step
        events.jsonl     events such as lost workers           run.log         the controller's log
        groups.jsonl     what became of every group (`training.group_log`)
        workers.json     the rollout workers               requests/       for more or fewer of them
        routing.jsonl    expert loads, one line per step (mixtures of experts only)
        lease/           which process may write (`lease`)
        rollouts/step-*.parquet    checkpoints/step-*/    ledger/*.jsonl    model/    report.html

Only one process writes to it: the controller that holds the lease. Files are replaced by rename. Logs
(`*.jsonl`) are appended with one `write` per line, and readers ignore lines that do not end in a newline.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import InputError, RunNotFoundError, StateError
from orchestrator.runs import lease as leases
from orchestrator.runs.files import append_line, cut_half_line, whole_lines, write_atomically
from orchestrator.runs.process import ProcessIdentity
from orchestrator.runs.record import RunRecord, RunState, StageRecord, WaitRecord

if TYPE_CHECKING:
    from orchestrator.training.records import ExpertLoad

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MetricsLine:
    """The metrics of one step."""

    step: int
    time_ns: int
    metrics: Mapping[str, float]


class RunDirectory:
    """Paths, state and metrics of one run. Creating the object does not touch the disk.

    A process writes to a run only after `begin`, which makes it the run's only writer. If another process
    takes over later, every method that writes raises `lease.FencedError`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_id = path.name
        self.config = path / "config.yaml"
        self.manifest = path / "manifest.json"
        self.state = path / "state.json"
        self.metrics = path / "metrics.jsonl"
        self.events = path / "events.jsonl"
        self.groups = path / "groups.jsonl"
        self.routing = path / "routing.jsonl"
        self.log = path / "run.log"
        self.worker_logs = path / "logs"
        self.lease = path / "lease"
        self.workers = path / "workers.json"
        self.requests = path / "requests"
        self.rollouts = path / "rollouts"
        self.evaluations = path / "evaluations"
        self.checkpoints = path / "checkpoints"
        self.ledger = path / "ledger"
        self.model = path / "model"
        self.report = path / "report.html"
        self._held: leases.Lease | None = None

    def require_new(self) -> None:
        """Raises StateError if a run of that id exists."""
        if self.path.exists():
            raise self._exists_already()

    def create(self) -> None:
        """Make the directory and its folders.

        Raises StateError if a run of that id exists, InputError if the folder cannot be created.
        """
        try:
            self.path.mkdir(parents=True)
            for folder in (self.rollouts, self.checkpoints, self.ledger):
                folder.mkdir()
        except FileExistsError as error:
            raise self._exists_already() from error
        except OSError as error:
            raise InputError(
                f"The run directory {self.path} cannot be created: {error.strerror or error}."
                " Choose another folder with output_dir=DIR."
            ) from error

    def _exists_already(self) -> StateError:
        return StateError(
            f"Run {self.run_id} already exists in {self.path.parent}."
            f" Continue it with: orchestrator resume {self.run_id}. Or choose another --run-id."
        )

    # -- one writer

    def newest_fence(self) -> int:
        """The number of the newest lease of any process; 0 if there is none."""
        newest = leases.read_lease(self.lease)
        return newest.fence if newest is not None else 0

    def wait_until_free(self, on_wait: Callable[[str], None] = logger.info) -> int:
        """Wait until no other process executes the run, and return the number of the
        newest lease for `begin`.

        If the last process was on another machine, this takes up to `lease.SILENT_SECONDS`, and `on_wait`
        receives a message. Raises StateError if another process executes the run.
        """
        fence = leases.wait_until_free(self.lease, on_wait=on_wait)
        if fence == 0 and self.state.exists():  # a run of a version without leases
            record = self.record()
            process = record.process
            if not record.state.is_final and process is not None and process.is_alive():
                raise StateError(
                    f"Run {self.run_id} is still running (process {process.pid} on {process.host})."
                    f" Stop it first: orchestrator stop {self.run_id}."
                )
        return fence

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
        fence: int | None = None,
    ) -> RunRecord:
        """Become the writer of the run, and record the next attempt at it.

        `stages` are the names of a pipeline's stages, in order. `fence` is what `wait_until_free` returned,
        or `newest_fence` for a stage of a pipeline whose lease this process holds; None: wait here. Raises
        StateError if another process is the writer, or has become it meanwhile.
        """
        self._held = leases.claim(self.lease, self.wait_until_free() if fence is None else fence)
        for log in (self.events, self.groups):
            cut_half_line(log)
        attempt, started_ns = 1, at_ns
        stage_runs: dict[str, StageRecord] = {}
        if self.state.exists():
            before = self.record()
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
        self.workers.unlink(missing_ok=True)  # those of the attempt before
        return record

    def keep_lease(self, on_lost: Callable[[leases.FencedError], None]) -> None:
        """Send heartbeats until `release`. If the lease is lost, `on_lost` is called on another thread."""
        if self._held is not None:
            self._held.keep_alive(on_lost)

    def check_writer(self) -> None:
        """Raises `lease.FencedError` if this process was the writer and another one has taken over."""
        if self._held is not None:
            self._held.check()

    def release(self) -> None:
        """Release the lease, so that the next process does not have to wait."""
        if self._held is not None:
            self._held.release()

    # -- state

    def write_state(self, state: RunState, why: str, at_ns: int) -> None:
        """Change the state. `why` says what failed or who requested the stop; empty if the run succeeded."""
        ended_ns = at_ns if state.is_final else None
        record = dataclasses.replace(self.record(), state=state, why=why, ended_ns=ended_ns, waiting=())
        self._replace(self.state, record.to_json())

    def write_waiting(self, waiting: tuple[WaitRecord, ...]) -> None:
        """Replace what the run waits for."""
        self._replace(self.state, dataclasses.replace(self.record(), waiting=waiting).to_json())

    def write_workers(self, fields: Mapping[str, Any]) -> None:
        """Replace workers.json: the rollout workers and how many there should be, as plain JSON."""
        self._replace(self.workers, json.dumps(fields, indent=2) + "\n")

    def add_stage(self, name: str, run_id: str) -> None:
        """Record that the run `run_id` executes the stage `name` of this pipeline."""
        record = self.record()
        stages = {stage.name: stage for stage in record.stages} | {name: StageRecord(name, run_id)}
        record = dataclasses.replace(record, stages=tuple(stages.values()))
        self._replace(self.state, record.to_json())

    def record(self) -> RunRecord:
        """The content of state.json. Raises RunNotFoundError if there is none, or none that can be read."""
        try:
            return RunRecord.from_json(self.state.read_text(encoding="utf-8"))
        except OSError as error:
            raise RunNotFoundError(
                "run", self.run_id, "a run directory", f"no state.json in {self.path}"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            hint = f"{self.state} is damaged: {error}"
            raise RunNotFoundError("run", self.run_id, "a run directory", hint) from error

    def stage_run(self, run_id: str) -> RunDirectory:
        """The directory of a stage of this pipeline."""
        return RunDirectory(self.path.parent / run_id)

    def write_config(self, text: str) -> None:
        """Replace config.yaml."""
        self._replace(self.config, text)

    def write_manifest(self, text: str) -> None:
        """Replace manifest.json."""
        self._replace(self.manifest, text)

    # -- logs

    def append_metrics(self, step: int, metrics: Mapping[str, float], at_ns: int) -> None:
        """Add a line to metrics.jsonl. Values that are not finite are written as null,
        because JSON has no NaN.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._append(self.metrics, {"step": step, "time_ns": at_ns, "metrics": finite})

    def append_routing(self, step: int, loads: Sequence[ExpertLoad]) -> None:
        """Add a line to routing.jsonl: each expert's share of its layer's tokens, to four digits."""
        layers = {str(load.layer): [round(share, 4) for share in load.shares] for load in loads}
        self._append(self.routing, {"step": step, "layers": layers})

    def read_routing(self) -> dict[int, dict[int, list[float]]]:
        """Shares by layer, then by step, in order. If a step was written twice, the later line counts."""
        found: dict[int, dict[int, list[float]]] = {}
        for line in whole_lines(self.routing):
            fields = json.loads(line)
            for layer, shares in fields["layers"].items():
                found.setdefault(int(layer), {})[fields["step"]] = shares
        return {layer: dict(sorted(steps.items())) for layer, steps in sorted(found.items())}

    def append_event(self, event: str, fields: Mapping[str, Any], at_ns: int) -> None:
        """Add a line to events.jsonl: the kind of the event (`worker_lost`, ...) and its
        fields, as plain JSON.
        """
        self._append(self.events, {"event": event, "time_ns": at_ns, **fields})

    def read_events(self, event: str) -> Iterator[dict[str, Any]]:
        """The fields of every `event` in events.jsonl, in the order in which they were written."""
        for line in whole_lines(self.events):
            fields = json.loads(line)
            if fields.pop("event") == event:
                del fields["time_ns"]
                yield fields

    def append_groups(self, fields: Mapping[str, Any]) -> None:
        """Add a line to groups.jsonl: what became of some groups, plain JSON."""
        self._append(self.groups, fields)

    def read_metrics(self) -> Iterator[MetricsLine]:
        """The lines of metrics.jsonl in the order written, without values that were not finite."""
        for line in whole_lines(self.metrics):
            fields = json.loads(line)
            metrics = {name: float(value) for name, value in fields["metrics"].items() if value is not None}
            yield MetricsLine(fields["step"], fields["time_ns"], metrics)

    def drop_metrics_after(self, step: int) -> None:
        """Delete the lines after `step`, and a line that a crash cut short. A
        resumed run writes them again.
        """
        for path in (self.metrics, self.routing):
            if path.exists():
                kept = [line for line in whole_lines(path) if json.loads(line)["step"] <= step]
                self._replace(path, b"".join(kept))

    def _append(self, path: Path, fields: Mapping[str, Any]) -> None:
        self.check_writer()
        append_line(path, fields)

    def _replace(self, path: Path, data: str | bytes) -> None:
        self.check_writer()
        write_atomically(path, data)
