"""Reconciles Ray's own actor events with the ledger, through the command: recorded
events, and those of real runs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.cli.app import run_command_line
from tests.conftest import Program
from tests.running import events_of, going_on, interrupt, last_step, pid_of, wait_for_step, wait_until

pytestmark = pytest.mark.slow

RECORDING = Path(__file__).parents[2] / "docs" / "examples" / "ray"


def test_a_recording_is_reconciled_and_signed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--output-dir", str(tmp_path)]
    assert run_command_line(["cost", "ship", str(RECORDING / "ledger"), *where]) == 0
    words = ["cost", "reconcile-ray", str(RECORDING), *where]
    assert run_command_line([*words, "--tolerance", "3"]) == 0
    out = capsys.readouterr().out
    assert "Ray and the ledger agree" in out
    assert "7 incarnations of actors with resources, 6 leases, 18 spans of work" in out
    assert run_command_line([*words, "--tolerance", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {kind: number for kind, number in document["counts"].items() if number} == {"leased_too_long": 1}
    [found] = document["findings"]
    assert (found["actor"], found["life"], found["node"]) == ("inside", 0, "192.0.2.2")
    assert found["ns"] == found["ledger_ns"] - found["ray_ns"] > 10**9
    signed = tmp_path / "signed.json"
    sign = ["--tolerance", "1", "--sign-off", "Ada", "--out", str(signed)]
    assert run_command_line([*words, *sign]) == 2, "differences need a note"
    assert run_command_line([*words, *sign, "--note", "known to within one look"]) == 0
    assert json.loads(signed.read_text())["signed"]["by"] == "Ada"
    capsys.readouterr()
    for wrong in (
        ["cost", "reconcile-ray", str(tmp_path / "nowhere")],
        [*words, "--sign-off", "Ada"],
        [*words, "--until", "yesterday"],
    ):
        assert run_command_line([*wrong, "--json"]) == 2
        assert json.loads(capsys.readouterr().out)["allowed"]


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which a Ray that is started here writes its events. Its path is short
    because Ray's sockets are in it.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    monkeypatch.setenv("RAY_enable_export_api_write_config", "EXPORT_ACTOR,EXPORT_NODE")
    yield folder / "ray"
    shutil.rmtree(folder, ignore_errors=True)  # Ray's last processes may still write there


@pytest.mark.long
@pytest.mark.ray
def test_a_real_run_with_a_killed_worker_matches_rays_events(
    tmp_path: Path, exported: Path, small_run: Callable[..., tuple[str, ...]]
) -> None:
    program = Program(tmp_path)
    run = tmp_path / "killed"
    rules = ("rollout.workers=2", "evaluation.every=0", "max_staleness=1", "algorithm=grpo_tis")
    words = small_run(run.name, *rules)
    with going_on(program, *words) as process:
        wait_for_step(run, 2, process)
        os.kill(pid_of(run, "rollout-0"), signal.SIGKILL)
        second_life = run / "ledger" / "1-rollout-0-1.jsonl"
        wait_until(lambda: second_life.exists() and second_life.stat().st_size > 0, "its next life", process)
        wait_for_step(run, max(last_step(run) + 3, 12), process)
        interrupt(process)

    result = program.json("cost", "reconcile-ray", str(exported), "--tolerance", "10")

    assert result["findings"] == []
    # Each incarnation of an actor of the run has its own spool file.
    spools = list((run / "ledger").glob("1-*-[0-9].jsonl"))
    assert result["lives"] >= len(spools) >= 4
    lost = [event["worker"] for event in events_of(run) if event["event"] == "worker_lost"]
    assert "rollout-0" in lost
    assert result["leases"] > 0 and result["spans"] > 20
