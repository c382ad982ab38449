"""What is written and said when a run has ended."""

from __future__ import annotations

from rich.console import Console

from orchestrator.run_config import RunConfig
from orchestrator.training.run_directory import RunDirectory


def write(directory: RunDirectory, config: RunConfig) -> None:
    pass


def print_outcome(directory: RunDirectory, console: Console, config: RunConfig) -> None:
    record = directory.record()
    console.print(f"{directory.run_id}: {record.state.value} {record.why}")
