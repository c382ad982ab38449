"""Interfaces through which a job shows its progress. The caller passes them in, because this
package has no terminal.
"""

from __future__ import annotations

import contextlib
from decimal import Decimal
from typing import Protocol

from orchestrator.training.records import StepReport


class LiveView(Protocol):
    """Shows one training run while it is running. Exceptions that it raises end the run."""

    def update(self, report: StepReport, cost: Decimal | None) -> None:
        """A step ended; `cost` is the cost of the run so far, None if it is not known yet."""
        ...

    def message(self, text: str) -> None:
        """Show a line of text, which may contain untrusted text from a worker."""
        ...


class Views(Protocol):
    """Creates the view of each training run of a job: a pipeline has one for each stage."""

    def open(self, title: str, steps: int, currency: str) -> contextlib.AbstractContextManager[LiveView]:
        """The view of a run of `steps` steps, shown while the context is open."""
        ...

    def message(self, text: str) -> None:
        """Show a line of text, whether or not a training run is shown. Thread-safe."""
        ...


class QuietView:
    """Shows nothing."""

    def update(self, report: StepReport, cost: Decimal | None) -> None:
        pass

    def message(self, text: str) -> None:
        pass


class NoViews:
    """For callers that read the run directory instead."""

    def open(self, title: str, steps: int, currency: str) -> contextlib.AbstractContextManager[LiveView]:
        return contextlib.nullcontext(QuietView())

    def message(self, text: str) -> None:
        pass
