"""SIGINT, SIGTERM and SIGHUP of `orchestrator run` and `orchestrator resume`, from the start of the process.

    moment                                  first signal                   second signal
    before the run exists (config, data)    exit 4, nothing was started    -
    during the run                          checkpoint, then exit 4        exit 128 + its number, immediately

A separate thread receives the signals, because Python's handlers run only when the main thread executes
bytecode, not while it is inside a long library call. Signals within `SAME_REQUEST_SECONDS` of the first one
count as the same request: `timeout` sends its signal twice, and terminals and schedulers may do so too.

The two commands import this module before anything else, so it must import quickly.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_REQUEST_SECONDS = 1.0
NOTHING_STARTED_EXIT_CODE = 4


class StopSignals:
    """Receives the signals and calls back on its own thread. Create it once per
    process, in the main thread.
    """

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._lock = threading.Lock()
        self._first: tuple[signal.Signals, float] | None = None
        self._on_stop: Callable[[str], None] = _exit_before_the_run
        self._on_abort: Callable[[str], None] = lambda name: None

    def start(self) -> None:
        """Begin to listen. A SIGHUP that is ignored, as under nohup, stays ignored."""
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _leave_it_to_the_thread)
        threading.Thread(target=self._listen, name="stop-signals", daemon=True).start()

    def connect(self, on_stop: Callable[[str], None], on_abort: Callable[[str], None]) -> None:
        """Connect the signals to a run. `on_stop` is called with the name of the first signal and
        must ask the run to stop; `on_abort` is called with the name of the second signal just
        before the process exits.
        """
        with self._lock:
            self._on_stop, self._on_abort = on_stop, on_abort

    def _listen(self) -> None:
        while received := self._receiver.recv(1):
            if received[0] in SIGNALS:
                self._handle(signal.Signals(received[0]))

    def _handle(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (number, now)
            try:
                with self._lock:
                    self._on_stop(number.name)
            except Exception as error:  # noqa: BLE001 - a second signal must be heard in any case
                _say(f"{number.name}: asking the run to stop failed ({error!r}); a second signal ends it")
        elif now - self._first[1] >= SAME_REQUEST_SECONDS:
            try:
                self._on_abort(number.name)
            except Exception as error:  # noqa: BLE001 - whatever fails here, the process ends
                _say(f"{number.name}: recording the abort failed ({error!r})")
            os._exit(128 + number)


_listening: list[StopSignals] = []
"""At most one element, because signals belong to the process."""


def listen() -> None:
    """Listen for the signals of this process. Call it once, in the main thread, as early as possible."""
    signals = StopSignals()
    signals.start()
    _listening.append(signals)


def connect(on_stop: Callable[[str], None], on_abort: Callable[[str], None]) -> None:
    """Call `StopSignals.connect` if this process listens for signals."""
    for signals in _listening:
        signals.connect(on_stop, on_abort)


def finish() -> None:
    """Ignore further signals, because the exit code is final. Otherwise Python would restore the default
    handlers during its shutdown, and a late signal would kill the process with another exit code.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _exit_before_the_run(name: str) -> None:
    _say(f"{name}: stopped before the run began; nothing was started")
    os._exit(NOTHING_STARTED_EXIT_CODE)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may have gone away
        sys.stderr.write(f"\norchestrator: {text}\n")
        sys.stderr.flush()


def _leave_it_to_the_thread(number: int, frame: object) -> None:
    """Replaces Python's default handlers, so that the wake-up descriptor hears the signal and
    nothing else happens.
    """
