"""One writer per run: a lease in the run directory that works across hosts and containers.

    <run>/lease/000001.json    the first attempt: owner, heartbeat count, whether it was released
    <run>/lease/000002.json    the second one, ...

The file with the highest number belongs to the only process that may write to the run directory. The number
is the fencing token: it only grows, and the file is created exclusively, so that of two processes that want
to continue a run at the same moment one wins.

The owner raises the heartbeat count every `HEARTBEAT_SECONDS`. Another process can take over

- immediately, if the lease was released, or if it can see that the owner's process is gone;
- after `SILENT_SECONDS` without a change of the heartbeat count, if it cannot see the owner's process
  (another machine or container). It watches for a change and never compares clocks, so clock skew
  does not matter.

An owner that was only frozen or cut off from the file system, and returns after it was replaced, finds
the higher number before its next write. `Lease.check` then raises `FencedError`, and its run ends. The
process could still be suspended between this check and the write, so in principle one stale write is
possible, but not more.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.errors import StateError
from orchestrator.runs.process import ProcessIdentity

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
SILENT_SECONDS = 20.0
"""Four heartbeats. A live owner is never silent for so long unless its machine or its file system hangs."""


class FencedError(StateError):
    """Another process has taken over the run, so this process must not write to it."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class LeaseState:
    """The newest lease of a run as it was last read. `owner` is None if the file is not readable (yet)."""

    fence: int
    content: bytes
    owner: ProcessIdentity | None
    released: bool

    @property
    def where(self) -> str:
        """A description of the owner for messages."""
        if self.owner is None:
            return "another process"
        return f"process {self.owner.pid} on {self.owner.host}"


class Lease:
    """The right to write to a run directory, held by this process until `release`."""

    def __init__(self, folder: Path, fence: int) -> None:
        self.fence = fence
        self._folder, self._file, self._successor = folder, _file(folder, fence), _file(folder, fence + 1)
        self._owner = ProcessIdentity.current()
        self._beat = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def check(self) -> None:
        """Raises FencedError if another process has taken over the run. Costs one look at the disk."""
        if self._successor.exists():
            state = read_lease(self._folder)
            who = state.where if state is not None else "another process"
            raise FencedError(
                f"Run {self._folder.parent.name} was taken over by {who}; this process stops writing to it."
            )

    def keep_alive(self, on_lost: Callable[[FencedError], None], every: float = HEARTBEAT_SECONDS) -> None:
        """Send heartbeats from a thread until `release`. `on_lost` is called on that thread, once, if another
        process has taken over.
        """
        self._thread = threading.Thread(
            target=self._send_heartbeats, args=(on_lost, every), name="lease", daemon=True
        )
        self._thread.start()

    def release(self) -> None:
        """Release the lease, so that the next process does not have to wait. Does nothing
        if it is already lost.
        """
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if not self._successor.exists():
            self._write(released=True)

    def _send_heartbeats(self, on_lost: Callable[[FencedError], None], every: float) -> None:
        while not self._ended.wait(every):
            try:
                self.check()
            except FencedError as error:
                on_lost(error)
                return
            self._beat += 1
            self._write(released=False)

    def _write(self, *, released: bool) -> None:
        """Overwrite the file in place: its size stays the same, so a full disk does not matter."""
        try:
            descriptor = os.open(self._file, os.O_WRONLY)
            try:
                os.write(descriptor, _content(self._owner, self._beat, released))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            logger.warning("no heartbeat in %s: %s", self._file, error)


def read_lease(folder: Path) -> LeaseState | None:
    """The newest lease in `folder`; None if there is none."""
    found = sorted(folder.glob("[0-9]*.json"))
    if not found:
        return None
    content = found[-1].read_bytes()
    try:
        fields = json.loads(content)
        owner, released = ProcessIdentity(**fields["owner"]), bool(fields["released"])
    except (ValueError, KeyError, TypeError):
        owner, released = None, False
    return LeaseState(int(found[-1].stem), content, owner, released)


def wait_until_free(
    folder: Path,
    *,
    silent_seconds: float = SILENT_SECONDS,
    look_every: float = 0.5,
    on_wait: Callable[[str], None] = logger.info,
) -> int:
    """Wait until the newest lease may be taken over, and return its number; 0 if there is none.

    Waits for at most `silent_seconds`, which is reported to `on_wait`. Raises StateError
    if the owner is alive.
    """
    state = read_lease(folder)
    if state is None:
        return 0
    if _may_be_taken(state):
        return state.fence
    run_id = folder.parent.name
    if state.owner is not None and state.owner.is_alive():
        raise StateError(
            f"Run {run_id} is still running ({state.where}). Stop it first: orchestrator stop {run_id}."
        )
    on_wait(f"{state.where} may still run {run_id}: watching its heartbeat for up to {silent_seconds:g} s")
    deadline = time.monotonic() + silent_seconds
    while time.monotonic() < deadline:
        time.sleep(look_every)
        now = read_lease(folder)
        if now is not None and now.content != state.content:
            if _may_be_taken(now):
                return now.fence
            raise StateError(
                f"Run {run_id} is still running ({now.where}): its heartbeat is alive. Stop it there first."
            )
    return state.fence


def claim(folder: Path, fence: int) -> Lease:
    """Take over the run whose newest lease is number `fence`; 0: there is none.

    Raises StateError if another process was faster.
    """
    folder.mkdir(exist_ok=True)
    content = _content(ProcessIdentity.current(), 0, released=False)
    try:
        descriptor = os.open(_file(folder, fence + 1), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError as error:
        raise StateError(
            f"Run {folder.parent.name} is still running: another process has just begun to run it."
        ) from error
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return Lease(folder, fence + 1)


def seconds_silent(folder: Path) -> float | None:
    """Seconds since the newest lease was last written, by this machine's clock. For display only, because
    clocks of machines differ. None if there is no lease.
    """
    found = sorted(folder.glob("[0-9]*.json"))
    return time.time() - found[-1].stat().st_mtime if found else None


def _may_be_taken(state: LeaseState) -> bool:
    if state.released:
        return True
    return state.owner is not None and (
        state.owner == ProcessIdentity.current() or state.owner.is_alive() is False
    )


def _file(folder: Path, fence: int) -> Path:
    return folder / f"{fence:06d}.json"


def _content(owner: ProcessIdentity, beat: int, released: bool) -> bytes:
    """The content of a lease file, whose size is always the same for one owner."""
    flag = "true " if released else "false"
    return f'{{"beat": "{beat:012d}", "released": {flag}, "owner": {json.dumps(asdict(owner))}}}\n'.encode()
