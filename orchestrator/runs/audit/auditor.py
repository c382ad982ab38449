"""Audits a run directory, whether the run is live, ended or was killed. Writes nothing."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.errors import InputError, StateError
from orchestrator.runs.audit.account import Account, Audit
from orchestrator.runs.audit.replay import Replay
from orchestrator.runs.audit.witnesses import (
    compare_checkpoints,
    compare_metrics,
    compare_rollouts,
    compare_usage,
    read_usage,
    tokens_given_up,
)
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.files import whole_lines
from orchestrator.training.group_log import record_from_json


def audit_run(run: RunDirectory, running: bool) -> Audit:
    """Audit one training run; `running` if it may still write. Raises StateError if it recorded no groups,
    InputError if one of its files is damaged.
    """
    replay = Replay()
    for number, line in enumerate(whole_lines(run.groups), 1):
        try:
            record = record_from_json(line)
        except ValueError as error:
            raise InputError(f"{run.groups}:{number} is not a record of groups: {error}") from error
        replay.read(record)
    if replay.begins_after is None:
        raise StateError(
            f"Run {run.run_id} cannot be audited: {run.groups} has no records. It has not begun to train, or"
            " an older version made it."
        )
    under_way = replay.end(running)
    usage = read_usage(run)
    violations = [
        *replay.violations,
        *compare_checkpoints(run, replay, running),
        *compare_rollouts(run, replay),
        *compare_metrics(run, replay),
        *compare_usage(run, replay, usage, running),
    ]
    groups, tokens = replay.accounts()
    if not running:
        tokens += Account(aborted=tokens_given_up(replay, usage))
    return Audit(
        len(replay.steps),
        tuple(replace(violation, run=run.run_id) for violation in violations),
        groups,
        tokens,
        under_way,
    )
