"""Terminal output for a job that this process runs: live views, and a short summary at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from decimal import Decimal
from typing import TYPE_CHECKING

from orchestrator.cli import terminal
from orchestrator.cli.progress import Progress
from orchestrator.console.formats import sampled_accuracies
from orchestrator.percent import percent, percent_with_interval
from orchestrator.runs.metric_intervals import interval_of
from orchestrator.runs.record import RunState
from orchestrator.runs.status import leading_stage, progress

if TYPE_CHECKING:
    from orchestrator.launch import LiveView, Outcome
    from orchestrator.training.records import StepReport

HEADLINES = (
    ("accuracy/heldout", "held-out accuracy"),
    ("rollout/reflection_fraction", "rollouts with self-checks"),
)


class TerminalViews:
    """Shows each training run of a job on stderr."""

    def __init__(self) -> None:
        self._console = terminal.console(err=True)
        self._shown: LiveView | None = None

    @contextlib.contextmanager
    def open(self, title: str, steps: int, currency: str) -> Generator[LiveView]:
        """The live view of one training run."""
        with contextlib.ExitStack() as stack:
            progress = _DisconnectTolerantView(Progress(title, steps, self._console, currency), stack)
            self._shown = progress
            try:
                yield progress
            finally:
                self._shown = None

    def message(self, text: str) -> None:
        """Show a line in the live view, or print it if there is no live view. Thread-safe."""
        if self._shown is not None:
            self._shown.message(text)
        else:
            with contextlib.suppress(OSError):
                terminal.say(text, err=True)


class _DisconnectTolerantView:
    """A progress view that ignores the loss of its terminal, because a run must outlive the window
    in which it was started.
    """

    def __init__(self, progress: Progress, stack: contextlib.ExitStack) -> None:
        self._progress = progress
        with contextlib.suppress(OSError):
            progress.__enter__()
        stack.push(self._close)

    def update(self, report: StepReport, cost: Decimal | None) -> None:
        with contextlib.suppress(OSError):
            self._progress.update(report, cost)

    def message(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._progress.message(text)

    def _close(self, *failure: object) -> None:
        with contextlib.suppress(OSError):
            self._progress.__exit__(*failure)  # type: ignore[arg-type]


def print_outcome(outcome: Outcome) -> None:
    """Print how the run ended, what it achieved, what it cost, and where its files are."""
    from rich.text import Text

    from orchestrator.launch.final_report import cost

    directory = outcome.directory
    colour = "green" if outcome.state is RunState.DONE else "red"
    terminal.show(Text.assemble((directory.run_id, "bold"), "  ", (outcome.state.value, colour)))
    if outcome.why:
        terminal.say(f"  {outcome.why}")
    leading = leading_stage(directory, directory.record())
    at = progress(leading, [name for name, _ in HEADLINES])
    for name, label in (*HEADLINES, *sampled_accuracies(at.history)):
        series = at.history.get(name, [])
        if series:
            reached = percent_with_interval(series[-1][1], interval_of(name, at.metrics))
            terminal.say(f"  {label}: {percent(series[0][1])} -> {reached}")
    for warning in leading.read_events("training_warning"):
        terminal.say(f"  warning (step {warning['step']}): {warning['what']} {warning['check']}")
    spent = cost(directory, outcome.config)
    if spent is not None:
        terminal.say(
            f"  cost: {spent['amount']} {spent['currency']}, {spent['accelerator_hours']} accelerator-hours"
        )
    terminal.say(f"  report: {directory.report}")
