"""Progress output while a run trains: a live view on a terminal, occasional plain lines elsewhere.

`orchestrator run` passes step reports to a `Progress`; `orchestrator watch` reads the run directory of
another process. With `--json` the console is on stderr, so that stdout contains only JSON.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from orchestrator.cli.run_view import COST, HELDOUT, RunSnapshot, plain_line, render
from orchestrator.cli.terminal import printable
from orchestrator.clock import NANOSECONDS, Clock, SystemClock

if TYPE_CHECKING:
    from orchestrator.runs.directory import RunDirectory
    from orchestrator.runs.record import RunState, WaitRecord
    from orchestrator.training.records import StepReport

REFRESHES_PER_SECOND = 2


class Progress:
    """Shows the progress of a run in this process. Use it as a context manager and call
    `update` after each step.

    On a terminal it redraws in place. Elsewhere it prints one line for the first step, the last step and
    every evaluation, and otherwise at most one line every `line_every_seconds`.
    """

    def __init__(
        self,
        job: str,
        steps: int,
        console: Console,
        currency: str,
        *,
        line_every_seconds: float = 10.0,
        clock: Clock | None = None,
    ) -> None:
        self._console, self._clock = console, clock or SystemClock()
        self.snapshot = RunSnapshot(job, steps, currency, self._clock.now_ns())
        self._line_every_ns = int(line_every_seconds * NANOSECONDS)
        self._last_line_ns: int | None = None
        self._live = _live(console, self._render) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.snapshot.state == "running":
            self.snapshot.state = "stopped" if error else "done"
        if self._live:
            self._live.stop()

    def update(self, report: StepReport, cost: Decimal | None = None) -> None:
        """Show the report of a finished step. `cost` is the cost of the run so far."""
        now_ns = self._clock.now_ns()
        self.snapshot.add(report.step, now_ns, report.metrics)
        if cost is not None:
            self.snapshot.cost = cost
        if self._live is None and self._line_is_due(report, now_ns):
            self._last_line_ns = now_ns
            self._print(plain_line(self.snapshot))

    def message(self, text: str) -> None:
        """Show a message, for example about a checkpoint, a lost worker or a budget."""
        if self._live:
            self.snapshot.message = text
        else:
            self._print(f"{self.snapshot.title}  {text}")

    def _line_is_due(self, report: StepReport, now_ns: int) -> bool:
        first_or_last = self._last_line_ns is None or report.step >= self.snapshot.steps
        return (
            first_or_last
            or HELDOUT in report.metrics
            or now_ns - (self._last_line_ns or 0) >= self._line_every_ns
        )

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        return render(self.snapshot, self._clock.now_ns(), self._console.width)


def watch(
    run: RunDirectory,
    console: Console,
    currency: str,
    *,
    poll_seconds: float = 1.0,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Show a run of another process, including the stages of a pipeline, until it ends.
    Returns its final state.

    Raises RunNotFoundError if the directory holds no run.
    """
    clock = SystemClock()
    view = WatchedRun(run, currency)
    live = _live(console, lambda: view.render(clock.now_ns(), console.width)) if console.is_terminal else None
    if live:
        live.start()
    try:
        while True:
            state = view.refresh()
            if live is None:
                for line in view.new_lines():
                    console.print(line, markup=False, highlight=False, soft_wrap=True)
            if state.is_final:
                return state.value
            sleep(poll_seconds)
    finally:
        if live:
            live.stop()


class WatchedRun:
    """The state of a run, or of a pipeline's stages, as read from their directories."""

    def __init__(self, run: RunDirectory, currency: str) -> None:
        self._run, self._currency = run, currency
        self._snapshots: dict[str, RunSnapshot] = {}
        self._read: dict[str, tuple[RunState, int, tuple[WaitRecord, ...]]] = {}
        self._printed: dict[str, str] = {}

    def refresh(self) -> RunState:
        """Read what has changed and return the state of the run."""
        from orchestrator.runs import status as runs

        record = runs.observe(self._run)
        started = [stage.run_id for stage in record.stages if stage.run_id is not None]
        stages = [self._run.stage_run(run_id) for run_id in started]
        for part in stages if record.stages else [self._run]:
            if part.state.exists():
                self._refresh(part)
        return record.state

    def _refresh(self, run: RunDirectory) -> None:
        from orchestrator.runs import status as runs

        record = runs.observe(run)
        size = run.metrics.stat().st_size if run.metrics.exists() else 0
        seen = (record.state, size, record.waiting)
        if self._read.get(run.run_id) == seen:
            return
        title = f"{record.job} · {run.run_id}" if not record.stage else f"{record.pipeline} · {record.stage}"
        snapshot = RunSnapshot(title, record.steps, self._currency, record.started_ns, record.state.value)
        for line in run.read_metrics():
            snapshot.add(line.step, line.time_ns, line.metrics)
        if COST in snapshot.metrics:
            snapshot.cost = Decimal(str(snapshot.metrics[COST]))
        snapshot.message = record.why or "; ".join(wait.text for wait in record.waiting)
        self._snapshots[run.run_id] = snapshot
        self._read[run.run_id] = seen

    def new_lines(self) -> Iterator[str]:
        """One plain line for every run that has changed since the last call."""
        for run_id, snapshot in self._snapshots.items():
            line = plain_line(snapshot)
            if snapshot.state == "running" and snapshot.message:
                line = f"{line}  {printable(snapshot.message)}"
            if self._printed.get(run_id) != line:
                self._printed[run_id] = line
                yield line

    def render(self, now_ns: int, width: int) -> RenderableType:
        """Render the newest stage in full and the earlier ones as one line each."""
        snapshots = list(self._snapshots.values())
        if not snapshots:
            return Text("waiting for the run to start", style="dim")
        earlier = [
            Text(plain_line(snapshot), style="dim", no_wrap=True, overflow="ellipsis")
            for snapshot in snapshots[:-1]
        ]
        return Group(*earlier, render(snapshots[-1], now_ns, width))


def _live(console: Console, draw: Callable[[], RenderableType]) -> Live:
    return Live(console=console, get_renderable=draw, refresh_per_second=REFRESHES_PER_SECOND)
