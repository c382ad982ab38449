"""Labels of runs: to whom usage is attributed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from orchestrator.ledger.events import Event, PurposeSet, RunDeclared


class Labels(NamedTuple):
    """The owner and purpose of a run; all empty for a run that was never declared."""

    organisation: str = ""
    cost_centre: str = ""
    team: str = ""
    project: str = ""
    pipeline: str = ""
    job: str = ""
    stage: str = ""
    purpose: str = ""


UNLABELLED = Labels()


def labels_of(events: Iterable[Event]) -> dict[str, Labels]:
    """The labels of each run: from its latest declaration (by `at_ns`, then `event_id`), with the latest
    statement of its purpose.
    """
    declared: dict[str, RunDeclared] = {}
    purposes: dict[str, RunDeclared | PurposeSet] = {}
    for event in events:
        if isinstance(event, RunDeclared):
            _keep_latest(declared, event)
            _keep_latest(purposes, event)
        elif isinstance(event, PurposeSet):
            _keep_latest(purposes, event)
    labels: dict[str, Labels] = {}
    for run_id, purpose in purposes.items():
        run = declared.get(run_id)
        known = (
            UNLABELLED
            if run is None
            else Labels(
                run.organisation, run.cost_centre, run.team, run.project, run.pipeline, run.job, run.stage
            )
        )
        labels[run_id] = known._replace(purpose=purpose.purpose)
    return labels


def _keep_latest(
    known: dict[str, RunDeclared] | dict[str, RunDeclared | PurposeSet], event: RunDeclared | PurposeSet
) -> None:
    before = known.get(event.run_id)
    if before is None or (before.at_ns, before.event_id) < (event.at_ns, event.event_id):
        known[event.run_id] = event  # type: ignore[assignment]
