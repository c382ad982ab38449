"""`orchestrator audit` on the files of simulated runs: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.cli.audit import show_audit
from orchestrator.errors import StateError
from orchestrator.runs.directory import RunDirectory
from orchestrator.training.simulation.run import SimulationSettings
from tests.simulation.audited import run_recorded

SETTINGS = SimulationSettings(seed=3, steps=4, max_staleness=1, prompts_per_step=8)
TOKENS = SETTINGS.timing.tokens_per_rollout * SETTINGS.group_size


@pytest.fixture
def ended(tmp_path: Path) -> RunDirectory:
    """A run of four steps that has ended."""
    run = RunDirectory(tmp_path / "small")
    run.path.mkdir()
    run.begin(job="grpo", purpose="final", steps=4, at_ns=0)
    run_recorded(SETTINGS, run.path)
    run.release()
    return run


def test_a_run_without_violations_exits_with_0(
    ended: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show_audit("small", ended.path.parent, as_json=False) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["trained", "32", f"{32 * TOKENS:,}"] in printed
    assert ["sampled", "32", f"{32 * TOKENS:,}"] in printed


def test_a_violation_is_printed_and_exits_with_1(
    ended: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ended.groups.read_text().splitlines()
    trained = next(number for number, line in enumerate(lines) if json.loads(line)["event"] == "trained")
    ended.groups.write_text("".join(f"{line}\n" for line in [*lines[: trained + 1], *lines[trained:]]))

    assert show_audit("small", ended.path.parent, as_json=True) == 1
    violations = json.loads(capsys.readouterr().out)["violations"]
    assert {violation["kind"] for violation in violations} >= {"trained_twice"}
    assert {violation["run"] for violation in violations} == {"small"}
    assert show_audit("small", ended.path.parent, as_json=False) == 1
    shown = capsys.readouterr()
    assert "violation in small: " in shown.out + shown.err


def test_a_run_that_recorded_no_groups_is_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "empty")
    run.path.mkdir()
    run.begin(job="grpo", purpose="final", steps=4, at_ns=0)
    with pytest.raises(StateError, match="empty cannot be audited"):
        show_audit("empty", tmp_path, as_json=False)
