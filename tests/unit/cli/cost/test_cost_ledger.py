"""Which ledger a cost command opens: --ledger, then the config, then the environment, then a file beside the
runs. Every cost command has the option.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from orchestrator.cli.cost.app import app as cost_app
from orchestrator.cli.cost.options import default_ledger, open_ledger
from orchestrator.errors import ConfigError


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCHESTRATOR_LEDGER_URL", raising=False)


def run_with(output_dir: Path, name: str, url: str, at: int) -> None:
    config = output_dir / name / "config.yaml"
    config.parent.mkdir()
    config.write_text(f"ledger:\n  url: {url}\n")
    os.utime(config, (at, at))


def test_the_config_comes_before_the_environment_and_the_file_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_ledger(tmp_path) == f"sqlite:///{tmp_path}/ledger.db"
    monkeypatch.setenv("ORCHESTRATOR_LEDGER_URL", "sqlite:////tmp/environment.db")
    assert default_ledger(tmp_path) == "sqlite:////tmp/environment.db"
    run_with(tmp_path, "a", "null", at=1)
    assert default_ledger(tmp_path) == "sqlite:////tmp/environment.db"
    run_with(tmp_path, "b", "sqlite:////tmp/config.db", at=2)
    assert default_ledger(tmp_path) == "sqlite:////tmp/config.db"
    run_with(tmp_path, "c", "sqlite:////tmp/newer.db", at=3)
    assert default_ledger(tmp_path) == "sqlite:////tmp/newer.db"


def test_the_option_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_LEDGER_URL", f"sqlite:///{tmp_path}/environment.db")
    run_with(tmp_path, "a", f"sqlite:///{tmp_path}/config.db", at=1)
    open_ledger(f"sqlite:///{tmp_path}/option.db", tmp_path)
    assert [path.name for path in tmp_path.glob("*.db")] == ["option.db"]


def test_the_password_of_a_masked_url_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(tmp_path, "a", "postgresql://ann:***@db/ledger", at=1)
    with pytest.raises(ConfigError, match="ORCHESTRATOR_LEDGER_URL"):
        default_ledger(tmp_path)
    monkeypatch.setenv("ORCHESTRATOR_LEDGER_URL", "postgresql://ann:hush@db/ledger")
    assert default_ledger(tmp_path) == "postgresql://ann:hush@db/ledger"


def commands(group: TyperGroup) -> Iterator[tuple[str, set[str]]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command)
        else:
            yield name, {option for parameter in command.params for option in parameter.opts}


def test_every_cost_command_takes_a_ledger() -> None:
    root = get_command(cost_app)
    assert isinstance(root, TyperGroup)
    found = dict(commands(root))
    assert {"report", "headline", "close", "set", "slurm", "wrap", "watch"} <= set(found)
    assert {name for name, options in found.items() if "--ledger" not in options} == {"import-aws"}
