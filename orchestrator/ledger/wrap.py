"""Accounts for a command that does not use the ledger itself: leases its resources, emits heartbeats while it
runs, and closes the leases when it ends.

Each heartbeat is a span since the previous one. So the time up to the last heartbeat is always work, and
only the time after it can be lost: if the wrapper is killed, its leases end with its last heartbeat (the
ledger books the following grace period as `lost`). The command does not outlive its wrapper, because its
usage would not be accounted for.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.events import (
    Event,
    LeaseClosed,
    LeaseOpened,
    PurposeSet,
    RunDeclared,
    SpanRecorded,
    event_to_json,
)
from orchestrator.ledger.labels import Labels
from orchestrator.ledger.power import FILE, PowerLog, PowerMeter

ROLE, ACTIVITY = "job", "run"
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_SET_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


@dataclass(frozen=True, slots=True)
class Held:
    """The resources of a command: `count` of `sku` on `node`."""

    resource: str
    sku: str
    count: int
    node: str


def held_by(environment: Mapping[str, str], gpus: int | None, cpus: int | None, sku: str, node: str) -> Held:
    """Return the resources given, else the GPUs in CUDA_VISIBLE_DEVICES, else the
    CPUs that this process may use.

    Raises LedgerError if there are none.
    """
    visible = [part for part in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    if gpus is None and cpus is None and visible and visible != ["-1"]:
        gpus = len(visible)
    if gpus:
        return Held("gpu", sku or "gpu", gpus, node)
    count = len(os.sched_getaffinity(0)) if cpus is None else cpus
    if count < 1:
        raise LedgerError("--cpus", str(count), "1 or more")
    return Held("cpu", sku or "cpu-slot", count, node)


class Spool:
    """Appends events to a file, each as one line with one write. The ledger ships it later."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def emit(self, *events: Event) -> None:
        """Append events. Raises OSError."""
        for event in events:
            os.write(self._fd, (event_to_json(event) + "\n").encode())

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def declare(run_id: str, labels: Labels, at_ns: int) -> RunDeclared:
    """The declaration of a wrapped run."""
    return RunDeclared(
        _new_id(),
        at_ns,
        run_id,
        1,
        labels.job,
        labels.purpose,
        labels.organisation,
        labels.cost_centre,
        labels.team,
        labels.project,
        labels.pipeline,
        labels.stage,
    )


def run(
    command: Sequence[str],
    run_id: str,
    labels: Labels,
    held: Held,
    spool_file: Path,
    every_seconds: float,
    now_ns: Callable[[], int],
    meter: PowerMeter | None = None,
) -> int:
    """Run `command` and return its exit code, 128 + n if it was ended by signal n. SIGINT, SIGTERM and SIGHUP
    are forwarded to it.

    `meter` measures the energy of each lease, into `power.jsonl` beside the directory of the spool. A run
    with an exit code other than 0 is `failed`, unless it was asked to stop. Raises LedgerError if the
    command cannot be started; then nothing was leased.
    """
    parent = os.getpid()
    try:
        # No thread has been started yet, so the child may run Python code before it becomes the command.
        process = subprocess.Popen(command, preexec_fn=lambda: _die_with(parent))  # noqa: PLW1509
    except (OSError, ValueError) as error:
        raise LedgerError("COMMAND", command[0], "an executable program", str(error)) from error
    try:
        with _signals_forwarded(process) as stopped, Spool(spool_file) as spool:
            started = now_ns()
            leases = [f"{run_id}/1/{slot}" for slot in range(held.count)]
            spool.emit(declare(run_id, labels, started), *_open(leases, run_id, held, started))
            power_file = spool_file.parent.parent / FILE
            power = None if meter is None else PowerLog(meter, leases, power_file, started)
            code = _beat(process, leases, started, spool, power, every_seconds, now_ns)
            if code != 0 and not stopped:
                spool.emit(PurposeSet(_new_id(), now_ns(), run_id, "failed"))
    except BaseException:
        process.kill()  # its usage would not be accounted for
        process.wait()
        raise
    return code if code >= 0 else 128 - code


def _beat(
    process: subprocess.Popen[bytes],
    leases: Sequence[str],
    started: int,
    spool: Spool,
    power: PowerLog | None,
    every_seconds: float,
    now_ns: Callable[[], int],
) -> int:
    """Emit heartbeats until the process ends, then close the leases. Returns the exit code."""
    beat = started
    code: int | None = None
    while code is None:
        with contextlib.suppress(subprocess.TimeoutExpired):  # it is still running
            code = process.wait(every_seconds)
        now = max(now_ns(), beat)
        spool.emit(*(_span(lease, beat, now) for lease in leases))
        if power is not None:
            power.beat(now)
        beat = now
    spool.emit(*(LeaseClosed(_new_id(), beat, lease, "released") for lease in leases))
    return code


def _open(leases: Sequence[str], run_id: str, held: Held, at_ns: int) -> list[LeaseOpened]:
    return [
        LeaseOpened(_new_id(), at_ns, lease, run_id, 1, held.resource, held.sku, held.node, "", slot)
        for slot, lease in enumerate(leases)
    ]


def _span(lease: str, start_ns: int, end_ns: int) -> SpanRecorded:
    return SpanRecorded(_new_id(), lease, "wrap", ROLE, ACTIVITY, start_ns, end_ns, 0, 0)


@contextlib.contextmanager
def _signals_forwarded(process: subprocess.Popen[bytes]) -> Generator[list[int]]:
    """Forward signals to the command within the context. Yields the list of received signals."""
    received: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        received.append(number)
        if number != signal.SIGINT or not _in_foreground():  # Ctrl-C has already reached the command
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_foreground() -> bool:
    """Whether a terminal sends Ctrl-C to this process and its children."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def _die_with(parent: int) -> None:
    """Runs in the child before the command: die with the wrapper. Linux only; elsewhere the
    command continues.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _new_id() -> str:
    return uuid.uuid4().hex
