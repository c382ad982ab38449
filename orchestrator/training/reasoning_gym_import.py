"""The only place that imports reasoning_gym, so that it can be imported without three of its dependencies.

`import reasoning_gym` imports each of its datasets, and with them three packages that are published as
source only, one of them a C extension. Four datasets of more than a hundred use them. Where one of the three
is not installed, a module that raises an error on use takes its place in `sys.modules`; `missing_solver` says
which datasets that affects.
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
    """Stands in for a package that reasoning_gym imports but most of its datasets never use."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ModuleNotFoundError(f"{self.__name__} is not installed: pip install {self.__name__}")


def missing_solver(dataset: str) -> str | None:
    """The package that `dataset` needs and that is not installed, if there is one."""
    solver = _SOLVER_OF.get(dataset)
    return solver if isinstance(sys.modules.get(solver or ""), _NotInstalled) else None


def _stand_in_for_missing_solvers() -> None:
    for solver in set(_SOLVER_OF.values()):
        if solver not in sys.modules and importlib.util.find_spec(solver) is None:
            sys.modules[solver] = _NotInstalled(solver)


_stand_in_for_missing_solvers()

# These imports need the stand-ins.
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
