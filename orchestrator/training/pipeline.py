"""What a file in `jobs/` can ask for: train this run, or carry out one of its stages and go on from
the model it made.
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
    """A Hugging Face folder, and the run that made it: the lineage of whatever starts from it."""

    path: Path
    run_id: str


class Job(Protocol):
    """One run, as its job's file sees it.

    A stage that was carried out before an interruption is not repeated.
    """

    async def train(self) -> TrainedModel:
        """Run the training loop with this run's own config."""
        ...

    async def stage(self, name: str, start_from: TrainedModel | None = None) -> TrainedModel:
        """Carry out the stage `name` of this run's config, as a run of its own."""
        ...


def find_job(name: str) -> Callable[[Job], Awaitable[None]]:
    """The coroutine function `run` of `jobs/<name>.py`, or of an entry point of that name in the group
    `orchestrator.job`. Raises ConfigError if there is neither.
    """
    module = f"{JOBS_PACKAGE}.{name}"
    if importlib.util.find_spec(module) is not None:
        return importlib.import_module(module).run
    for point in entry_points(group="orchestrator.job", name=name):
        return point.load()
    raise ConfigError("job", name, f"a module {module} or an entry point of the group orchestrator.job")
