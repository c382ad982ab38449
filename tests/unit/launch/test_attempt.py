"""What one attempt tells the ledger about how it ended."""

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
def test_a_run_that_ends_by_an_error_is_failed_work(error: BaseException) -> None:
    assert _told(error) == [("run", "failed")]


class _FullDisk:
    """A sink that refuses."""

    def emit(self, event: UsageEvent) -> None:
        raise OSError(28, "No space left on device")


def test_what_ended_the_run_is_told_although_the_disk_is_full(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(CheckpointError, match="step 3"), record_failure(_FullDisk(), "run", FakeClock()):
        raise CheckpointError("the checkpoint of step 3 could not be written")
    assert "orchestrator cost purpose run failed" in caplog.text


@pytest.mark.parametrize("error", [None, BudgetStopError("the limit"), DrainedError("SIGTERM")])
def test_a_run_that_ends_or_was_told_to_keeps_its_purpose(error: BaseException | None) -> None:
    assert _told(error) == []
