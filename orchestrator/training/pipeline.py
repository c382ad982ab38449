"""The interface of the files in `jobs/`: train this run, or run one of its stages and
continue from the resulting model.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from orchestrator.errors import ConfigError

JOBS_PACKAGE = "jobs"


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A Hugging Face folder, and the run that trained it, which is the lineage of runs that start from it."""

    path: Path
    run_id: str


class Job(Protocol):
    """One run, as seen by its job file.

    A stage that was completed before an interruption is not repeated.
    """

    async def train(self) -> TrainedModel:
        """Run the training loop with this run's own config."""
        ...

    async def stage(self, name: str, start_from: TrainedModel | None = None) -> TrainedModel:
        """Run the stage `name` of this run's config as its own run."""
        ...


def find_job(name: str) -> Callable[[Job], Awaitable[None]]:
    """Find the coroutine function `run` of `jobs/<name>.py`, or of the entry point `<name>` in the group
    `orchestrator.job`. Raises ConfigError if neither exists.
    """
    module = f"{JOBS_PACKAGE}.{name}"
    if importlib.util.find_spec(module) is not None:
        return importlib.import_module(module).run
    for point in entry_points(group="orchestrator.job", name=name):
        return point.load()
    raise ConfigError("job", name, f"a module {module} or an entry point of the group orchestrator.job")
