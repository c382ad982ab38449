from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import pytest

from orchestrator.errors import ConfigError
from orchestrator.training import reasoning_gym_import
from orchestrator.training.prompts.config import TaskConfig
from orchestrator.training.prompts.generated import generated_questions

WITHOUT_SOLVERS = """
import importlib.util

find = importlib.util.find_spec
hidden = {"cellpylib", "pycosat", "zss"}
importlib.util.find_spec = lambda name, *rest: None if name in hidden else find(name, *rest)
from orchestrator.training.reasoning_gym_import import create_dataset, missing_solver

print(create_dataset("countdown", seed=0, size=1)[0]["question"] != "")
print([missing_solver(name) for name in ("codeio", "game_of_life", "zebra_puzzles", "countdown")])
try:
    create_dataset("game_of_life", seed=0, size=1)[0]
except ModuleNotFoundError as error:
    print(error)
"""


def task(dataset: str, options: Mapping[str, object]) -> TaskConfig:
    return TaskConfig.model_validate(
        {
            "name": "t",
            "source": "reasoning_gym",
            "dataset": dataset,
            "options": dict(options),
            "path": None,
            "prompt_field": "question",
            "answer_field": "answer",
            "solution_field": None,
            "template": "{question}",
            "solutions": None,
            "train_size": 2,
            "heldout_size": 1,
            "seed": 0,
        }
    )


@pytest.mark.slow
def test_reasoning_gym_is_imported_without_its_optional_solvers() -> None:
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_SOLVERS], capture_output=True, text=True, check=False, timeout=60
    )
    assert run.stdout.splitlines() == [
        "True",
        "['zss', 'cellpylib', 'pycosat', None]",
        "cellpylib is not installed: pip install cellpylib",
    ], run.stderr


def test_a_dataset_whose_solver_is_missing_is_refused_with_the_package_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in = reasoning_gym_import._NotInstalled("cellpylib")  # pyright: ignore[reportPrivateUsage] - its role
    monkeypatch.setitem(sys.modules, "cellpylib", stand_in)
    with pytest.raises(ConfigError, match="pip install cellpylib") as refused:
        generated_questions(task("game_of_life", {}))
    assert refused.value.key == "task.dataset"
