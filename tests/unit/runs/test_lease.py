"""One writer per run: takeover, rejection and fencing, on one machine and across machines."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from orchestrator.errors import StateError
from orchestrator.runs.lease import FencedError, Lease, claim, read_lease, wait_until_free
from orchestrator.runs.process import ProcessIdentity

ELSEWHERE = replace(ProcessIdentity.current(), host="elsewhere", boot_id="another-machine")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "r1" / "lease"


@pytest.fixture(autouse=True)
def run_directory(folder: Path) -> None:
    folder.parent.mkdir()


def held_by(folder: Path, owner: ProcessIdentity, beat: int = 0, fence: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{fence:06d}.json"
    path.write_text(json.dumps({"beat": f"{beat:012d}", "released": False, "owner": asdict(owner)}))
    return path


def test_a_new_run_is_free_and_its_fencing_number_grows_with_each_owner(folder: Path) -> None:
    assert wait_until_free(folder) == 0
    first = claim(folder, 0)
    first.release()
    assert wait_until_free(folder) == 1
    assert claim(folder, 1).fence == 2


def test_only_one_of_two_concurrent_takeovers_succeeds(folder: Path) -> None:
    seen = wait_until_free(folder)
    claim(folder, seen)
    with pytest.raises(StateError, match="another process has just begun"):
        claim(folder, seen)


def test_a_dead_process_of_this_machine_is_replaced_at_once(folder: Path) -> None:
    held_by(folder, replace(ProcessIdentity.current(), start_ticks=1))
    assert wait_until_free(folder, silent_seconds=1e9) == 1


def test_a_live_process_of_this_machine_is_not_replaced_whatever_its_host_name(folder: Path) -> None:
    code = "import sys; print('up', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        ticks = int(Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[19])
        current = ProcessIdentity.current()
        held_by(folder, replace(current, host="renamed", pid=other.pid, start_ticks=ticks))
        with pytest.raises(StateError, match=rf"process {other.pid} on renamed.*orchestrator stop r1"):
            wait_until_free(folder)
        other.communicate("")


def test_a_silent_owner_on_another_machine_is_replaced_after_a_while(folder: Path) -> None:
    held_by(folder, ELSEWHERE)
    said: list[str] = []
    assert wait_until_free(folder, silent_seconds=0.05, look_every=0.01, on_wait=said.append) == 1
    assert "elsewhere" in said[0]


def test_an_owner_on_another_machine_whose_heartbeat_changes_is_refused(folder: Path) -> None:
    held_by(folder, ELSEWHERE)

    def beat(_: str) -> None:
        held_by(folder, ELSEWHERE, beat=1)

    with pytest.raises(StateError, match="heartbeat is alive"):
        wait_until_free(folder, silent_seconds=1e9, look_every=0.01, on_wait=beat)


def test_an_invisible_process_of_another_container_is_not_considered_dead(folder: Path) -> None:
    other = replace(ProcessIdentity.current(), pid_namespace="pid:[1]", start_ticks=1)
    assert other.is_alive() is None
    held_by(folder, other)
    said: list[str] = []
    wait_until_free(folder, silent_seconds=0.05, look_every=0.01, on_wait=said.append)
    assert said


def test_an_unreadable_lease_is_watched_too(folder: Path) -> None:
    held_by(folder, ELSEWHERE).write_bytes(b"")
    said: list[str] = []
    assert wait_until_free(folder, silent_seconds=0.05, look_every=0.01, on_wait=said.append) == 1
    assert said


def test_a_replaced_owner_is_fenced_off_and_notified(folder: Path) -> None:
    lease = claim(folder, 0)
    lease.check()
    lost = threading.Event()
    errors: list[FencedError] = []

    def on_lost(error: FencedError) -> None:
        errors.append(error)
        lost.set()

    lease.keep_alive(on_lost, every=0.01)
    held_by(folder, ELSEWHERE, fence=2)
    assert lost.wait(60)
    assert "elsewhere" in str(errors[0])
    with pytest.raises(FencedError, match="taken over by process"):
        lease.check()
    lease.release()
    state = read_lease(folder)
    assert state is not None and (state.fence, state.released) == (2, False)


def test_heartbeats_change_the_file_and_a_released_lease_is_free(folder: Path) -> None:
    lease = claim(folder, 0)
    before = read_lease(folder)
    lease.keep_alive(lambda error: None, every=0.01)
    deadline = threading.Event()
    while read_lease(folder) == before:
        deadline.wait(0.01)
    lease.release()
    state = read_lease(folder)
    assert state is not None and state.released


def test_a_heartbeat_never_changes_the_size_of_the_file(folder: Path) -> None:
    lease = Lease(folder, claim(folder, 0).fence)
    size = (folder / "000001.json").stat().st_size
    lease.release()
    assert (folder / "000001.json").stat().st_size == size
