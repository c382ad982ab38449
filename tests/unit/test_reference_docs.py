"""The generated reference matches the code."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator.cli.app import run_command_line
from orchestrator.config.resume_rules import CHANGEABLE, FIXED, MAY_GROW
from orchestrator.config.run_config import RunConfig

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_reference", REFERENCE / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["config", "cli"])
def test_the_reference_is_current(name: str) -> None:
    written = (REFERENCE / f"{name}.md").read_text(encoding="utf-8")
    current = getattr(generator(), f"{name}_reference")()
    assert written == current, "run: python docs/reference/generate.py"


def test_every_key_is_in_the_reference_with_its_meaning() -> None:
    lines = (REFERENCE / "config.md").read_text(encoding="utf-8").splitlines()
    keys = {match.group(1) for line in lines if (match := re.match(r"\| `([a-z_.0-9]+)` \|", line))}
    for name, field in RunConfig.model_fields.items():
        nested = getattr(field.annotation, "model_fields", None)
        missing = {f"{name}.{inner}" for inner in nested} - keys if nested else {name} - keys
        # A part of a part has its own rows: cluster.rollout.cpus, not cluster.rollout.
        assert all(any(key.startswith(f"{path}.") for key in keys) for path in missing), missing


def test_every_entry_of_the_resume_rules_is_in_the_reference_with_its_reason() -> None:
    section = (REFERENCE / "config.md").read_text(encoding="utf-8").partition("when a run is resumed\n")[2]
    rows = re.findall(r"^\| (`.+`) \| (may change|may only grow|fixed) \| (.*?) ?\|$", section, re.MULTILINE)
    documented = {key: (rule, reason) for keys, rule, reason in rows for key in re.findall("`([^`]+)`", keys)}
    assert documented == (
        dict.fromkeys(CHANGEABLE, ("may change", ""))
        | {key: ("may only grow", reason) for key, reason in MAY_GROW.items()}
        | {key: ("fixed", reason) for key, reason in FIXED.items()}
    )


def test_the_error_in_the_reference_is_the_one_printed(capsys: pytest.CaptureFixture[str]) -> None:
    text = (REFERENCE / "exit-codes.md").read_text(encoding="utf-8")
    documented = json.loads(text.partition("```json")[2].partition("```")[0])
    assert run_command_line(["config", "grpo", "rollout.group_size=1", "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == documented


def test_every_key_has_a_description() -> None:
    for name, definition in (
        RunConfig.model_json_schema()["$defs"] | {"": RunConfig.model_json_schema()}
    ).items():
        silent = [
            key for key, field in definition["properties"].items() if not {"$ref", "description"} & set(field)
        ]
        assert silent == [], name
