"""Identifies the process of a run, and checks whether it is still alive."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PID_NAMESPACE = Path("/proc/self/ns/pid")


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """Identifies a process uniquely. A pid alone does not: pids are reused, and differ between containers."""

    host: str
    boot_id: str
    pid: int
    start_ticks: int
    """Clock ticks from boot to the start of the process (proc(5), field 22 of stat)."""
    pid_namespace: str = ""
    """For example `pid:[4026531836]`; empty in records of older versions."""

    @classmethod
    def current(cls) -> ProcessIdentity:
        """This process."""
        pid = os.getpid()
        return cls(socket.gethostname(), _boot_id(), pid, _start_ticks(pid) or 0, _pid_namespace())

    def is_alive(self) -> bool | None:
        """Whether the process still runs; None if it cannot be seen from here, because it belongs to another
        machine or to another container.
        """
        if self.boot_id != _boot_id():
            return None
        same_namespace = (
            self.pid_namespace == _pid_namespace()
            if self.pid_namespace
            else self.host == socket.gethostname()
        )
        return self.start_ticks == _start_ticks(self.pid) if same_namespace else None


def _boot_id() -> str:
    return BOOT_ID.read_text().strip()


def _pid_namespace() -> str:
    return str(PID_NAMESPACE.readlink())


def _start_ticks(pid: int) -> int | None:
    """When `pid` started, in ticks since boot; None if there is no such process or it waits to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])
