"""The report of a run that has ended, and its cost."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from orchestrator.config.run_config import RunConfig
from orchestrator.console.report_reader import write_report
from orchestrator.console.run_curves import write_learning_curve
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.ledger import Ledger
from orchestrator.runs.directory import RunDirectory

logger = logging.getLogger(__name__)


def ledger_url(config: RunConfig) -> str:
    """The ledger that books this run's usage."""
    return config.ledger.url or f"sqlite:///{(config.output_dir / 'ledger.db').resolve()}"


def write(directory: RunDirectory, config: RunConfig) -> list[Path]:
    """Write report.html and learning_curve.png, and return those that could be written. A failure is only
    logged: the run itself is complete, and the report can be made again.
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
    return [directory.stage_run(stage.run_id) for stage in stages if stage.run_id] or [directory]


def cost(directory: RunDirectory, config: RunConfig) -> dict[str, Any] | None:
    """The document of `orchestrator cost report --json`; None if the ledger does not know the run."""
    database = config.output_dir / "ledger.db"
    if config.ledger.url is None and not database.is_file():
        return None
    try:
        ledger = Ledger.open(ledger_url(config), config.price_book)
        return ledger.report(directory.run_id).to_dict()
    except LedgerError as error:
        logger.warning("no cost report: %s", error)
        return None
