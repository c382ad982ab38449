"""`orchestrator audit`: prove from a run's files that its groups and tokens are accounted for."""

from __future__ import annotations

from functools import reduce
from operator import add
from pathlib import Path

from orchestrator.cli import terminal
from orchestrator.cli.output import print_json, print_table
from orchestrator.runs import status as runs
from orchestrator.runs.audit.account import Audit
from orchestrator.runs.audit.auditor import audit_run
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.record import RunState


def show_audit(reference: str, output_dir: Path, as_json: bool) -> int:
    """Audit a run, or all stages of a pipeline. Returns 0, or 1 if there are violations."""
    run = runs.find_run(output_dir, reference)
    audit = reduce(add, (_audited(part) for part in _training_runs(run)))
    if as_json:
        print_json(audit.to_json())
    else:
        _print_audit(audit)
    return 1 if audit.violations else 0


def _training_runs(run: RunDirectory) -> list[RunDirectory]:
    """The stages of a pipeline that have begun; otherwise the run itself."""
    stages = [run.stage_run(stage.run_id) for stage in run.record().stages if stage.run_id is not None]
    return [stage for stage in stages if stage.state.exists()] or [run]


def _audited(run: RunDirectory) -> Audit:
    return audit_run(run, running=runs.observe(run).state is RunState.RUNNING)


def _print_audit(audit: Audit) -> None:
    groups, tokens = audit.groups.to_json(), audit.tokens.to_json()
    rows = [[name, f"{groups[name]:,}", f"{tokens[name]:,}"] for name in groups if name != "sampled"]
    total = ["sampled", f"{groups['sampled']:,}", f"{tokens['sampled']:,}"]
    print_table(("", "groups", "tokens"), rows, "nothing was sampled", [total])
    if audit.under_way:
        terminal.say(f"{audit.under_way:,} groups are under way and not in the account yet")
    for violation in audit.violations:
        terminal.say(terminal.printable(f"violation in {violation.run}: {violation.message}"))
    if not audit.violations:
        terminal.say(f"no violation in {audit.steps:,} steps")
