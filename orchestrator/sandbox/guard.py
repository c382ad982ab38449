"""The guard: a small process that starts a program and makes sure that nothing of it stays behind.

    python -I -S guard.py '{"control": FD, "channel": FD, "limits": {"RLIMIT_AS": bytes}, "command": [...]}'

It runs as a plain script of the standard library, in a process of its own and in one thread, so neither a
program that holds Python's GIL in C code nor one that leaves its session or process group can stop it:

- It is a subreaper (`PR_SET_CHILD_SUBREAPER`): processes that the program orphans, by a double fork or by
  `setsid`, become its own children, and so stay below it in the process tree.
- The program gets `PR_SET_PDEATHSIG`: it dies when the guard does.
- It kills all its descendants when the program ends, when the other end of the control connection closes
  (`GuardedProcess.stop`, or the death of that process), and on SIGTERM. Then it ends as the program ended.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
KILL_SECONDS = 10.0
"""How long descendants may take to disappear after SIGKILL. Longer only in uninterruptible I/O."""
PARENT_CHECK_MS = 1000


def main(control_fd: int, channel_fd: int, limits: Mapping[str, int], command: Sequence[str]) -> None:
    """Run `command` under `limits` until it ends or the control connection closes; never returns. The program
    inherits `channel_fd`, and no other process keeps it open."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(ignored, signal.SIG_IGN)
    wakeup, far_end = socket.socketpair()
    wakeup.setblocking(False)
    far_end.setblocking(False)
    signal.set_wakeup_fd(far_end.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _noted)
    signal.signal(signal.SIGTERM, _noted)
    os.set_inheritable(control_fd, False)
    program = _start(limits, command)
    os.close(channel_fd)
    control = socket.socket(fileno=control_fd)
    with suppress(OSError):  # stopped already: `_wait` sees it, and the program is killed below
        control.sendall(b"%d\n" % program)
    status = _wait(program, control, wakeup)
    kill_descendants(os.getpid())
    _end_like((_reap(program) or 0) if status is None else status)


def _start(limits: Mapping[str, int], command: Sequence[str]) -> int:
    guard = os.getpid()
    program = os.fork()
    if program:
        return program
    try:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == guard:  # else it died before the line above
            os.setsid()
            signal.set_wakeup_fd(-1)
            for changed in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD, signal.SIGTERM):
                signal.signal(changed, signal.SIG_DFL)
            for name, value in limits.items():
                _limit(name, value)
            os.execvp(command[0], list(command))
    finally:
        os._exit(127)


def _limit(name: str, value: int) -> None:
    kind: int = getattr(resource, name)
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _wait(program: int, control: socket.socket, wakeup: socket.socket) -> int | None:
    """The program's exit status; None if it is still there and has to be killed."""
    parent = os.getppid()
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(wakeup, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll(PARENT_CHECK_MS)}
        status = _reap(program)
        # A copy of the other end that some fork of the parent inherited would hide the parent's death.
        if status is not None or control.fileno() in ready or os.getppid() != parent:
            return status
        with suppress(BlockingIOError):
            if signal.SIGTERM in wakeup.recv(4096):
                return None


def _reap(program: int) -> int | None:
    """Collect every child that has ended; the status of `program` if it was among them."""
    found: int | None = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == program:
            found = status


def kill_descendants(root: int) -> bool:
    """Send SIGKILL to everything below `root` until nothing is left. False if something would not die."""
    deadline = time.monotonic() + KILL_SECONDS
    while living := descendants(root):
        for pid in living:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def descendants(root: int) -> list[int]:
    """The living processes below `root`, parents before their children. Zombies do not count."""
    children: dict[int, list[tuple[int, bool]]] = {}
    for pid, parent, state in _processes():
        children.setdefault(parent, []).append((pid, state not in "ZX"))
    found: list[int] = []
    queue = [root]
    for parent in queue:
        for pid, living in children.get(parent, ()):
            queue.append(pid)
            if living:
                found.append(pid)
    return found


def _processes() -> Iterator[tuple[int, int, str]]:
    """(process id, parent's id, state) of every process in /proc."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - this script imports as little as it can
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:  # noqa: PTH123
                # The command's name, in parentheses, may itself contain spaces and parentheses.
                fields = stat.read().rpartition(b")")[2].split()
                yield int(name), int(fields[1]), fields[0].decode()


def _end_like(status: int) -> None:
    """End with the program's exit code, or by the signal that ended it."""
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(status)
        with suppress(OSError, ValueError):  # SIGKILL has no handler to reset
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)


def _noted(number: int, frame: object) -> None:
    """The wake-up descriptor reports the signal."""


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    main(arguments["control"], arguments["channel"], arguments["limits"], arguments["command"])
