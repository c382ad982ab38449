"""Our side of a guarded process: start it, and end it with everything that it started."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from orchestrator.sandbox import guard
from orchestrator.sandbox.channel import Channel

START_SECONDS = 60.0
STDERR = 2
STOP_SECONDS = guard.KILL_SECONDS + 5.0


class GuardedProcess:
    """A program with a `Channel` to it; see the package for who kills whom.

    `command` gets the descriptor of its end of the channel as an additional last argument. `limits` are
    resource limits by name (`RLIMIT_AS`). Its output is appended to the file `output`; None: it goes to our
    standard error. Raises OSError if the process cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        limits: Mapping[str, int],
        output: Path | None = None,
    ) -> None:
        control, far_control = socket.socketpair()
        channel, far_channel = socket.socketpair()
        self.channel = Channel(channel)
        self._control = control
        orders = {
            "control": far_control.fileno(),
            "channel": far_channel.fileno(),
            "limits": dict(limits),
            "command": [*command, str(far_channel.fileno())],
        }
        target = STDERR if output is None else os.open(output, _APPEND, 0o644)
        try:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(guard.__file__)), json.dumps(orders)],
                stdin=subprocess.DEVNULL,
                stdout=target,
                stderr=target,
                pass_fds=[far_control.fileno(), far_channel.fileno()],
                env=dict(environment),
                start_new_session=True,  # so that Ctrl-C reaches only us
            )
        except OSError:
            self.channel.close()
            control.close()
            raise
        finally:
            far_control.close()
            far_channel.close()
            if output is not None:
                os.close(target)
        self._pid: int | None = None

    @property
    def guard_pid(self) -> int:
        return self._guard.pid

    @property
    def pid(self) -> int | None:
        """The program's process id; None if it could not be started."""
        if self._pid is None:
            self._control.settimeout(START_SECONDS)
            try:
                self._pid = int(self._control.recv(32))
            except (OSError, ValueError):
                return None
        return self._pid

    def busy_seconds(self) -> float:
        """How long the program's first thread has computed or waited for a processor; 0 once it has ended.
        The rest of the time it waited for something else."""
        try:
            computed, queued, *_ = Path(f"/proc/{self.pid}/schedstat").read_bytes().split()
        except (OSError, ValueError):
            return 0.0
        return (int(computed) + int(queued)) / 1e9

    def stop(self) -> str:
        """Kill the program and everything that it started. Says how it ended: in its own way if it had ended
        before, else of SIGKILL. Safe to call again."""
        self._control.close()
        self.channel.close()
        try:
            code = self._guard.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            guard.kill_descendants(self._guard.pid)
            self._guard.kill()
            code = self._guard.wait()
        return f"died of {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
