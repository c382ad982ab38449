"""The events with which an attempt tells the ledger how it ended."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from orchestrator.clock import FakeClock
from orchestrator.errors import BudgetStopError, CheckpointError, DrainedError, NonFiniteError
from orchestrator.launch.attempt import record_failure
from orchestrator.training.usage import MemorySink, PurposeSet, UsageEvent


def _told(error: BaseException | None) -> list[tuple[str, str]]:
    sink = MemorySink()
    with contextlib.suppress(BaseException), record_failure(sink, "run", FakeClock()):
        if error is not None:
            raise error
    return [(event.run_id, event.purpose) for event in sink.events if isinstance(event, PurposeSet)]


@pytest.mark.parametrize(
    "error", [NonFiniteError("policy/loss", float("nan"), 3), RuntimeError("a bug"), asyncio.CancelledError()]
)
def test_a_run_that_ends_with_an_error_has_the_purpose_failed(error: BaseException) -> None:
    assert _told(error) == [("run", "failed")]


class _FullDisk:
    """A sink that raises an error."""

    def emit(self, event: UsageEvent) -> None:
        raise OSError(28, "No space left on device")


def test_the_error_of_a_run_is_raised_although_the_disk_is_full(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(CheckpointError, match="step 3"), record_failure(_FullDisk(), "run", FakeClock()):
        raise CheckpointError("the checkpoint of step 3 could not be written")
    assert "orchestrator cost purpose run failed" in caplog.text


@pytest.mark.parametrize("error", [None, BudgetStopError("the limit"), DrainedError("SIGTERM")])
def test_a_run_that_completes_or_is_stopped_keeps_its_purpose(error: BaseException | None) -> None:
    assert _told(error) == []
