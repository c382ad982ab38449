"""Commands that read run directories: runs, status, logs, rollouts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli import terminal
from orchestrator.cli.output import print_json
from orchestrator.cli.sparkline import sparkline
from orchestrator.console.formats import duration, money
from orchestrator.errors import ConfigError, StateError
from orchestrator.percent import percent
from orchestrator.runs import status as runs
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.record import RunRecord

if TYPE_CHECKING:
    from rich.console import Group

SPARKLINE_WIDTH = 24
RUN_COLUMNS = ("run", "state", "step", "accuracy", "cost")
SHOWN_ROLLOUTS = 4
"""How many rollouts are printed for a person who did not ask for a number."""


def list_runs(output_dir: Path, as_json: bool) -> int:
    """List all runs, newest first, one line each. `status` shows why a run ended."""
    records = runs.records(output_dir)
    if as_json:
        print_json([runs.summary(record) for record in records])
        return 0
    rows = [_run_line(output_dir, record) for record in records]
    if not rows:
        terminal.say(f"There are no runs in {output_dir}. To start one: orchestrator run r1_demo")
        return 0
    widths = [max(len(row[column]) for row in (RUN_COLUMNS, *rows)) for column in range(len(RUN_COLUMNS))]
    for row in (RUN_COLUMNS, *rows):
        left = "  ".join(cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True))
        right = "  ".join(cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True))
        terminal.say(f"{left}  {right}".rstrip())
    return 0


def _run_line(output_dir: Path, record: RunRecord) -> tuple[str, ...]:
    """The cells of a run. A stage of a pipeline is indented, because it belongs to the pipeline's line."""
    run = RunDirectory(output_dir / record.run_id)
    at = runs.progress(runs.leading_stage(run, record), ())
    accuracy = at.metrics.get("accuracy/heldout", at.metrics.get("accuracy/train"))
    return (
        record.run_id,
        record.state.value,
        str(at.step),
        "" if accuracy is None else percent(accuracy),
        _cost(run, record),
    )


def _cost(run: RunDirectory, record: RunRecord) -> str:
    """The cost of the run, or of all stages of a pipeline, at their last reports; empty if unknown."""
    stages = [run.stage_run(stage.run_id) for stage in record.stages if stage.run_id is not None] or [run]
    known = [runs.progress(stage, ()).metrics.get("cost/usd") for stage in stages]
    amounts = [Decimal(str(amount)) for amount in known if amount is not None]
    return money(sum(amounts, Decimal(0))) if amounts else ""


def show_status(reference: str, output_dir: Path, as_json: bool) -> int:
    """Show one run: its state, step, stages, and metrics with their history."""
    status = runs.status_document(runs.find_run(output_dir, reference))
    if as_json:
        print_json(status)
        return 0
    terminal.show(status_view(status))
    return 0


def status_view(status: Mapping[str, Any]) -> Group:
    """Render `runs.status_document` for a terminal."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Text.assemble((status["run_id"], "bold"), f"  {status['job']}  {status['state']}")
    parts: list[Any] = [head]
    if status["why"]:
        parts.append(terminal.printable(status["why"]))
    parts += [f"step {status['step']} of {status['steps']}, started {status['started']}"]
    parts += [
        f"  stage {stage['name']}: {stage['state']}  {stage['run_id'] or ''}"
        for stage in status.get("stages", ())
    ]
    parts += [
        Text(
            terminal.printable(f"warning (step {warning['step']}): {warning['what']} {warning['check']}"),
            style="yellow",
        )
        for warning in status["warnings"]
    ]
    parts += [
        Text(f"{terminal.printable(wait['text'])} ({duration(wait['seconds'])} so far)", style="yellow")
        for wait in status["waiting"]
    ]
    workers = status["workers"]
    if workers["running"] != workers["wanted"]:
        parts.append(f"{workers['running']} of {workers['wanted']} rollout workers are running")
    if status["bottleneck"]:
        parts.append(Text(terminal.printable(status["bottleneck"])))
    table = Table("metric", "last", "history", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, value in sorted(status["metrics"].items()):
        points = [(step, value) for step, value in status["history"].get(name, ())]
        interval = status["intervals"].get(name)
        bounds = "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"
        line = sparkline(points, status["step"], SPARKLINE_WIDTH)
        table.add_row(terminal.printable(name), f"{value:.5g}{bounds}", line)
    parts.append(table if status["metrics"] else "No metrics yet.")
    return Group(*parts)


def show_logs(reference: str, output_dir: Path, tail: int, as_json: bool) -> int:
    """Print the logs of the controller and of every worker, then the events. For a pipeline, these are the
    workers' logs and the events of its newest stage.
    """
    run = runs.find_run(output_dir, reference)
    stage = runs.leading_stage(run, run.record())
    lines = _lines(run.log)[-tail:]
    workers = {path.stem: _lines(path)[-tail:] for path in sorted(stage.worker_logs.glob("*.log"))}
    events = [json.loads(line) for line in _lines(stage.events)][-tail:]
    if as_json:
        print_json({"run_id": run.run_id, "lines": lines, "workers": workers, "events": events})
        return 0
    for worker, logged in workers.items():
        lines += [f"==> {worker} <==", *logged]
    if events:
        lines.append("==> events <==")
    for event in events:
        particulars = ", ".join(
            f"{key} {value}" for key, value in event.items() if key not in ("event", "time_ns")
        )
        lines.append(f"{runs.iso(event['time_ns'])} {event['event']}: {particulars}")
    terminal.say("\n".join(lines) or f"There are no log lines in {run.path}.")
    return 0


def show_rollouts(
    reference: str, output_dir: Path, step: int | None, worst: int | None, heldout: bool, as_json: bool
) -> int:
    """Show the recorded rollouts of a step, or the `worst` of them: those with the lowest reward."""
    run = runs.find_run(output_dir, reference)
    rows = _recorded(runs.leading_stage(run, run.record()), step, heldout)
    if worst is not None:
        rows = sorted(rows, key=_reward)[:worst]
    if as_json:
        print_json(rows)
        return 0
    shown = rows if worst is not None else rows[:SHOWN_ROLLOUTS]
    _print_rollouts(shown, len(rows), "--worst K shows those of lowest reward")
    return 0


def show_failed_rollouts(reference: str, output_dir: Path, step: int | None, as_json: bool) -> int:
    """Show the rollouts of one step or of all steps that could not be scored, with reasons and tracebacks."""
    from orchestrator.training.telemetry.failures import read_failures

    run = runs.find_run(output_dir, reference)
    rows = read_failures(runs.leading_stage(run, run.record()).rollouts)
    rows = [row for row in rows if step is None or row["step"] == step]
    if as_json:
        print_json(rows)
    elif rows:
        _print_rollouts(rows[:SHOWN_ROLLOUTS], len(rows), "--step N shows those of a step")
    else:
        terminal.say("No rollout failed to be scored.")
    return 0


def _recorded(run: RunDirectory, step: int | None, heldout: bool) -> list[dict[str, Any]]:
    from orchestrator.training.telemetry.recorder import read_recorded, recorded_steps

    kind = "heldout" if heldout else "step"
    directory = run.evaluations if heldout else run.rollouts
    steps = recorded_steps(directory, kind)
    if not steps:
        raise StateError(
            f"Run {run.run_id} has no recorded rollouts in {directory} yet."
            " tracking.record_every sets how often a step is recorded."
        )
    if step is None:
        step = steps[-1]
    if step not in steps:
        raise ConfigError("--step", str(step), ranges(steps), "only these steps were recorded")
    return read_recorded(directory, step, kind)


def _print_rollouts(rows: Sequence[Mapping[str, Any]], total: int, hint: str) -> None:
    from rich.panel import Panel
    from rich.text import Text

    for row in rows:
        shown = {
            key: terminal.printable(value) if isinstance(value, str) else value for key, value in row.items()
        }
        right = {None: "not graded", 0: "wrong", 1: "right"}.get(row["accuracy"], _cell(row["accuracy"]))
        facts = f"reward {_reward(row):.4g}, {right}, {row['length']} tokens, {shown['finish']}"
        facts += f", version {row['version']}"
        failure = f"\n\n{shown['grade']}: {shown['reason']}" if row["reason"] else ""
        if row.get("traceback"):
            failure += f"\n{shown['traceback'].rstrip()}"
        body = Text.assemble((shown["prompt"], "bold"), "\n", shown["response"], (failure, "red"))
        title = f"step {row['step']}  {shown['prompt_id']}" + ("  checks itself" if row["reflected"] else "")
        terminal.show(
            Panel(body, title=Text(title), subtitle=Text(facts), title_align="left", subtitle_align="left")
        )
    terminal.say(f"{len(rows)} of {total} rollouts; {hint}, --json all of them")


def _reward(row: Mapping[str, Any]) -> float:
    """The reward; minus infinity if it is unknown."""
    value = row["reward"]
    return -math.inf if value is None or math.isnan(value) else float(value)


def ranges(steps: Sequence[int]) -> str:
    """Format steps as ranges: `1-3, 5` for 1, 2, 3, 5."""
    ranges: list[list[int]] = []
    for step in steps:
        if ranges and step == ranges[-1][1] + 1:
            ranges[-1][1] = step
        else:
            ranges.append([step, step])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def _lines(path: Path) -> list[str]:
    """The lines of a log; empty if the file does not exist."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
