"""A job that has been checked and can start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.config.run_config import RunConfig
from orchestrator.runs.directory import RunDirectory
from orchestrator.training.cluster.placement import Placement
from orchestrator.training.prompts.source import EpochPrompts


@dataclass(frozen=True, slots=True)
class PreparedStage:
    """A training run that has been checked: its config, the slots of its actors and its prompts."""

    config: RunConfig
    placement: Placement
    prompts: EpochPrompts


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """A job that can start: everything that can be checked has been checked."""

    config: RunConfig
    directory: RunDirectory
    stages: Mapping[str, PreparedStage]
    """Stages by name. A job without stages has one entry with the name ""."""
    fence: int | None
    """The number of the run's newest lease; None for a new run."""

    @property
    def slots(self) -> int:
        """How many slots the job needs at the same time."""
        return max(len(stage.placement.all_slots()) for stage in self.stages.values())
