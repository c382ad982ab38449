"""No process survives the one that started it, even while the GIL is held or in a separate session."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.sandbox.guard import descendants
from orchestrator.sandbox.process import GuardedProcess
from tests.processes import alive

ROOT = Path(__file__).resolve().parents[2]

TREES = {
    "one process": "",
    "a child": "subprocess.Popen(['sleep', '600'])",
    "a child in a session of its own": "subprocess.Popen(['sleep', '600'], start_new_session=True)",
    "a double fork": """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp('sleep', ['sleep', '600'])
    os._exit(0)
os.wait()
""",
    "a grandchild that ignores signals": """
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        time.sleep(600)
    os.wait()
""",
    "twenty orphans": """
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
""",
}
WAYS_TO_HANG = {
    "sleeping": "time.sleep(600)",
    "holding the GIL": "ctypes.PyDLL(None).sleep(600)",
    "computing in C": "9 ** 9 ** 9",
}


def program(tree: str, ending: str) -> list[str]:
    """A Python program that starts a process tree, reports it, and then runs forever."""
    text = f"""
import ctypes, os, signal, subprocess, sys, time
{tree}
os.write(int(sys.argv[1]), b"\\0\\0\\0\\x04true")
{ending}
"""
    return [sys.executable, "-I", "-S", "-c", text]


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def started(tree: str, ending: str) -> tuple[GuardedProcess, list[int]]:
    process = GuardedProcess(program(tree, ending), os.environ, {})
    assert process.channel.receive(30) is True
    return process, [process.guard_pid, *descendants(process.guard_pid)]


@pytest.mark.parametrize("hang", WAYS_TO_HANG.values(), ids=WAYS_TO_HANG)
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_stop_ends_the_whole_tree(tree: str, hang: str) -> None:
    process, pids = started(tree, hang)
    assert process.pid in pids
    assert process.stop() == "died of SIGKILL"
    assert [pid for pid in pids if alive(pid)] == []


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
@pytest.mark.parametrize(
    ("ending", "how"),
    [
        ("os._exit(7)", "exited with code 7"),
        ("os.kill(os.getpid(), 11)", "died of SIGSEGV"),
        ("os.killpg(0, 9)", "died of SIGKILL"),
    ],
)
def test_the_tree_ends_with_the_program(tree: str, ending: str, how: str) -> None:
    process, _ = started(tree, ending)
    with pytest.raises((EOFError, OSError)):
        process.channel.receive(30)
    assert process.stop() == how
    assert process.stop() == how
    assert descendants(process.guard_pid) == []


@pytest.mark.parametrize("hang", WAYS_TO_HANG.values(), ids=WAYS_TO_HANG)
def test_the_tree_ends_when_we_are_killed(hang: str) -> None:
    tree = TREES["a double fork"] + TREES["a child in a session of its own"]
    text = f"""
import os, time
from orchestrator.sandbox.process import GuardedProcess
process = GuardedProcess({program(tree, hang)!r}, os.environ, {{}})
assert process.channel.receive(30) is True
print(process.guard_pid, flush=True)
time.sleep(600)
"""
    worker = subprocess.Popen([sys.executable, "-c", text], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with worker:
        assert worker.stdout is not None
        guard = int(worker.stdout.readline())
        pids = [guard, *descendants(guard)]
        assert len(pids) == 4
        worker.kill()
    assert wait_for(lambda: not any(map(alive, pids)))


def test_sigterm_to_the_guard_ends_the_tree() -> None:
    process, pids = started(TREES["a double fork"], WAYS_TO_HANG["holding the GIL"])
    os.kill(process.guard_pid, signal.SIGTERM)
    assert wait_for(lambda: [pid for pid in pids[1:] if alive(pid)] == [])
    process.stop()


def test_limits_environment_and_output(tmp_path: Path) -> None:
    text = """
import os, resource, sys
print(sorted(os.environ), resource.getrlimit(resource.RLIMIT_FSIZE)[0], flush=True)
"""
    output = tmp_path / "log"
    output.write_text("before\n")
    command = [sys.executable, "-I", "-S", "-c", text]
    process = GuardedProcess(command, {"PATH": os.defpath, "LC_ALL": "C"}, {"RLIMIT_FSIZE": 4096}, output)
    with pytest.raises(EOFError):
        process.channel.receive(30)
    assert process.stop() == "exited with code 0"
    assert output.read_text() == "before\n['LC_ALL', 'PATH'] 4096\n"


def test_a_missing_program_is_an_error() -> None:
    with GuardedProcess(["/no/such/program"], os.environ, {}) as process:
        with pytest.raises(EOFError):
            process.channel.receive(30)
        assert process.stop() == "exited with code 127"


def test_a_program_stopped_before_its_guard_has_started_it_is_killed() -> None:
    process = GuardedProcess(["sleep", "60"], os.environ, {})
    assert process.stop() == "died of SIGKILL"
