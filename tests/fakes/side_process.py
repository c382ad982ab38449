"""A child process that runs a function and exchanges messages with the test through a pipe.

Processes are forked by a server that has imported torch and has no threads. That is as fast as forking the
test's own process, whose threads might hold a lock at that moment.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
from collections.abc import Callable
from typing import Any

import torch

PRELOADED = ["__main__", "tests.fakes.side_process"]
LONGEST_ANSWER = 300.0
"""Seconds; longer than every timeout that is passed to a process, so that its own error comes first."""


class SideProcess:
    """A process that runs `work(pipe, *arguments)` and can be stopped, continued and killed."""

    def __init__(self, work: Callable[..., None], *arguments: object) -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_single_threaded, args=(work, theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def tell(self, what: object) -> None:
        self._pipe.send(what)

    def answer(self) -> Any:
        """The next message. Raises EOFError if the process has ended, and fails if it stays silent."""
        assert self._pipe.poll(LONGEST_ANSWER), f"process {self.pid} said nothing for {LONGEST_ANSWER:g} s"
        return self._pipe.recv()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self._process.join(LONGEST_ANSWER)
        assert not self._process.is_alive()

    def close(self) -> None:
        if self._process.is_alive():
            self.kill()
        self._pipe.close()


def _single_threaded(work: Callable[..., None], *arguments: object) -> None:
    torch.set_num_threads(1)
    work(*arguments)
