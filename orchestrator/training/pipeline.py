"""What a file in `jobs/` can ask for: train this run, or carry out one of its stages and go on from the model it made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

JOBS_PACKAGE = "jobs"


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A Hugging Face folder, and the run that made it: the lineage of whatever starts from it."""

    path: Path
    run_id: str


class Job(Protocol):
    """One run, as its job's file sees it. A stage that was carried out before an interruption is not repeated."""

    async def train(self) -> TrainedModel:
        """Run the training loop with this run's own config."""
        ...

    async def stage(self, name: str, start_from: TrainedModel | None = None) -> TrainedModel:
        """Carry out the stage `name` of this run's config, as a run of its own."""
        ...
