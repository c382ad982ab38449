"""Every shipped task is complete and loadable, and its held-out prompts never occur in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.training.prompts.config import TaskConfig
from orchestrator.training.prompts.load import load_prompts
from orchestrator.training.records import Prompt

ROOT = Path(__file__).resolve().parents[4]
TASKS = sorted((ROOT / "conf" / "task").glob("*.yaml"))


def puzzle(prompt: Prompt) -> str:
    """The question regardless of its wording: sorted numbers with the target, or the question itself."""
    entry: dict[str, Any] | None = prompt.reference.get("entry")
    if entry is None:
        return prompt.text
    if prompt.reference["dataset"] == "countdown":
        return f"{sorted(entry['metadata']['numbers'])}={entry['metadata']['target']}"
    return entry["question"]


@pytest.mark.slow
@pytest.mark.parametrize("path", TASKS, ids=[path.stem for path in TASKS])
def test_training_and_heldout_prompts_are_disjoint(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = TaskConfig(**yaml.safe_load(path.read_text()))
    source = load_prompts(config.model_copy(update={"solutions": None}), seed=0)
    train, heldout = source.take(config.train_size), source.heldout(config.heldout_size)
    assert len({prompt.text for prompt in train}) == config.train_size
    assert len({prompt.text for prompt in heldout}) == config.heldout_size
    assert not {prompt.text for prompt in train} & {prompt.text for prompt in heldout}
    assert not {puzzle(prompt) for prompt in train} & {puzzle(prompt) for prompt in heldout}


def test_tasks_are_found() -> None:
    assert len(TASKS) >= 4
