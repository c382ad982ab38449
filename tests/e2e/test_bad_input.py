"""Impossible inputs are rejected before anything starts: exit code 2, the key,
the value and what is allowed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.app import run_command_line


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `orchestrator run grpo <overrides>`, which must be rejected. Returns the JSON error."""
    monkeypatch.setenv("ORCHESTRATOR_OUTPUT_DIR", str(tmp_path / "runs"))

    def run(*overrides: str) -> dict[str, str]:
        code = run_command_line(["run", "grpo", *overrides, "--json"])
        error = json.loads(capsys.readouterr().out)
        assert code == 2, error
        assert set(error) >= {"error", "key", "value", "allowed", "hint"}
        assert not (tmp_path / "runs").exists(), "nothing may be started"
        return error

    return run


def task_file(path: Path, *lines: str) -> tuple[str, ...]:
    path.write_text("".join(f"{line}\n" for line in lines))
    return (
        "task=jsonl_example",
        "task.solution_field=null",
        f"task.path={path}",
        "task.train_size=1",
        "task.heldout_size=1",
        "evaluation.prompts=1",
    )


ROW = '{"question": "1+1=", "answer": "2"}'
OTHER = '{"question": "1+2=", "answer": "3"}'


def test_a_missing_model_folder(refused: Any) -> None:
    error = refused("model.path=/no/such/folder", "task.solutions=null")

    assert (error["key"], error["value"]) == ("model.path", "/no/such/folder")
    assert "config.json" in error["allowed"]


def test_a_broken_line_of_a_task_file_is_named(refused: Any, tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"

    error = refused(*task_file(path, ROW, "{broken", OTHER))

    assert error["key"] == f"{path}:2"


@pytest.mark.slow
def test_an_empty_dataset(refused: Any, tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"

    error = refused(*task_file(path))

    assert str(path) in error["key"]


@pytest.mark.slow
def test_a_prompt_longer_than_the_context_is_named(refused: Any, tmp_path: Path) -> None:
    long = json.dumps({"question": "1" * 500, "answer": "1"})

    error = refused(*task_file(tmp_path / "task.jsonl", ROW, long), "rollout.max_new_tokens=16")

    assert "/0" in error["value"] or "/1" in error["value"]
    assert "model.context" in error["allowed"]


@pytest.mark.slow
def test_actors_that_do_not_fit_into_their_slot(refused: Any) -> None:
    error = refused("cluster.learner.cpus=5", "task.solutions=null")

    assert error["key"] == "cluster.slot_cpus"


@pytest.mark.slow
def test_a_price_book_with_an_overlap(refused: Any) -> None:
    price = (
        "{sku: cpu-slot, resource: cpu, region: local, commitment: on_demand, amount: '1', accelerators: 1,"
    )
    price += " currency: USD, from: '2020-01-01', to: null, source: x, retrieved: '2026-01-01'}"

    error = refused(f"price_book.prices=[{price},{price}]", "task.solutions=null")

    assert error["key"].startswith("price_book")


@pytest.mark.slow
def test_an_unknown_scorer(refused: Any) -> None:
    error = refused("+reward.components.accurracy=1.0", "task.solutions=null")

    assert "accurracy" in error["value"] or "accurracy" in error["key"]
    assert "accuracy" in error["allowed"]
