"""Imports reasoning_gym. All imports go through this module, which makes three of its dependencies optional.

`import reasoning_gym` imports each of its datasets, and with them three packages that are only published
as source, one of them a C extension. Only four of more than a hundred datasets use them. If one of the
three is not installed, `sys.modules` gets a placeholder that raises an error on use; `missing_solver`
says which datasets are affected.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

_SOLVER_OF = {
    "codeio": "zss",
    "game_of_life": "cellpylib",
    "game_of_life_halting": "cellpylib",
    "zebra_puzzles": "pycosat",
}


class _NotInstalled(ModuleType):
    """A placeholder for a package that reasoning_gym imports but most of its datasets never use."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ModuleNotFoundError(f"{self.__name__} is not installed: pip install {self.__name__}")


def missing_solver(dataset: str) -> str | None:
    """Return the package that `dataset` needs and that is not installed; None if nothing is missing."""
    solver = _SOLVER_OF.get(dataset)
    return solver if isinstance(sys.modules.get(solver or ""), _NotInstalled) else None


def _stand_in_for_missing_solvers() -> None:
    for solver in set(_SOLVER_OF.values()):
        if solver not in sys.modules and importlib.util.find_spec(solver) is None:
            sys.modules[solver] = _NotInstalled(solver)


_stand_in_for_missing_solvers()

# These imports need the placeholders.
from reasoning_gym import get_score_answer_fn  # noqa: E402
from reasoning_gym.dataset import ProceduralDataset  # noqa: E402
from reasoning_gym.factory import DATASETS, create_dataset  # noqa: E402
from reasoning_gym.games.countdown import CountdownConfig, CountdownDataset  # noqa: E402

__all__ = [
    "DATASETS",
    "CountdownConfig",
    "CountdownDataset",
    "ProceduralDataset",
    "create_dataset",
    "get_score_answer_fn",
    "missing_solver",
]
