"""Signals handled on a thread: before a run exists, once, twice, and while the main thread is busy."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

import pytest

BEFORE_THE_RUN = """
from orchestrator.cli import stop_signals
stop_signals.listen()
"""
IN_THE_RUN = (
    BEFORE_THE_RUN
    + """
stop_signals.connect(
    lambda name: print("stop", name, flush=True), lambda name: print("abort", name, flush=True)
)
"""
)
BUSY = """
print("ready", flush=True)
import ctypes
while True:
    ctypes.CDLL(None).sleep(1000)  # inside C: no Python handler would run now
"""
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def process(code: str) -> Generator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", code + BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        try:
            yield running
        finally:
            running.kill()


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_before_the_run_ends_the_process_with_code_4(number: signal.Signals) -> None:
    with process(BEFORE_THE_RUN) as running:
        running.send_signal(number)
        _, err = running.communicate()
    assert running.returncode == 4
    assert f"{number.name}: stopped before the run began" in err


@pytest.mark.slow
@pytest.mark.parametrize("number", STOPS)
def test_the_first_signal_requests_a_stop_and_the_second_one_ends_the_process(number: signal.Signals) -> None:
    with process(IN_THE_RUN) as running:
        assert running.stdout is not None
        running.send_signal(signal.SIGTERM)
        assert running.stdout.readline() == "stop SIGTERM\n"
        running.send_signal(number)  # `timeout` sends its signal twice: that is one request
        time.sleep(1.1)
        running.send_signal(number)
        out, _ = running.communicate()
    assert out == f"abort {number.name}\n"
    assert running.returncode == 128 + number


def test_callbacks_that_fail_are_reported_and_the_second_signal_still_ends_the_process() -> None:
    failing = BEFORE_THE_RUN + "stop_signals.connect(lambda name: 1 / 0, lambda name: [][0])\n"
    with process(failing) as running:
        running.send_signal(signal.SIGTERM)
        time.sleep(1.1)
        running.send_signal(signal.SIGTERM)
        _, err = running.communicate()
    assert running.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: asking the run to stop failed (ZeroDivisionError('division by zero'))" in err
    assert "SIGTERM: recording the abort failed (IndexError" in err


def test_under_nohup_a_hangup_is_ignored() -> None:
    ignoring = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    with process(ignoring + IN_THE_RUN) as running:
        assert running.stdout is not None
        running.send_signal(signal.SIGHUP)
        running.send_signal(signal.SIGTERM)
        assert running.stdout.readline() == "stop SIGTERM\n"
