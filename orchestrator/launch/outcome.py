"""What is written and said when a run has ended: its report for people, a few lines on the terminal."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.config.run_config import RunConfig
from orchestrator.console.formats import sampled_accuracies
from orchestrator.console.report_reader import write_report
from orchestrator.console.run_curves import write_learning_curve
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.ledger import Ledger
from orchestrator.percent import percent
from orchestrator.runs.directory import RunDirectory, RunState
from orchestrator.runs.status import leading_stage, progress

logger = logging.getLogger(__name__)

HEADLINES = (
    ("accuracy/heldout", "held-out accuracy"),
    ("rollout/reflection_fraction", "rollouts that check themselves"),
)


def ledger_url(config: RunConfig) -> str:
    """Where this run's usage is booked."""
    return config.ledger.url or f"sqlite:///{(config.output_dir / 'ledger.db').resolve()}"


def write(directory: RunDirectory, config: RunConfig) -> list[Path]:
    """Write report.html and learning_curve.png; those that were written. One that can't be written costs no
    run: it is logged, and can be made again.
    """
    curve = directory.path / "learning_curve.png"
    written: list[Path] = []
    try:
        write_report(directory, cost(directory, config))
        written.append(directory.report)
        if write_learning_curve(_training_runs(directory), curve):
            written.append(curve)
    except (OSError, ValueError, KeyError) as error:
        logger.warning("the report is not complete: %s", error, exc_info=True)
    return written


def _training_runs(directory: RunDirectory) -> list[RunDirectory]:
    stages = directory.record().stages
    return [RunDirectory(directory.path.parent / stage.run_id) for stage in stages if stage.run_id] or [
        directory
    ]


def print_outcome(directory: RunDirectory, config: RunConfig, console: Console) -> None:
    """How the run ended, what it reached, what it cost, and where to look."""
    record = directory.record()
    good = record.state is RunState.DONE
    console.print(
        f"[bold]{directory.run_id}[/]  [{'green' if good else 'red'}]{record.state.value}[/]  {record.why}"
    )
    history = progress(leading_stage(directory, record), [name for name, _ in HEADLINES])
    for name, label in (*HEADLINES, *sampled_accuracies(history.history)):
        series = history.history.get(name, [])
        if series:
            console.print(f"  {label}: {percent(series[0][1])} -> {percent(series[-1][1])}")
    spent = cost(directory, config)
    if spent is not None:
        console.print(
            f"  cost: {spent['amount']} {spent['currency']}, {spent['accelerator_hours']} accelerator-hours"
        )
    console.print(f"  report: {directory.report}", soft_wrap=True)


def cost(directory: RunDirectory, config: RunConfig) -> dict[str, Any] | None:
    """The JSON of `orchestrator cost report`, or None if the ledger does not know the run."""
    database = config.output_dir / "ledger.db"
    if config.ledger.url is None and not database.is_file():
        return None
    try:
        ledger = Ledger.open(ledger_url(config), config.price_book)
        return ledger.report(directory.run_id).to_dict()
    except LedgerError as error:
        logger.warning("no cost report: %s", error)
        return None
