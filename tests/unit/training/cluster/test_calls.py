"""What an actor's failure means to the loop."""

from __future__ import annotations

import asyncio
import errno
from concurrent.futures import Future
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from orchestrator.errors import CheckpointError, OrchestratorError, StorageError
from orchestrator.training.cluster.calls import ActorCrashError, answer


class _Failed:
    """A handle whose task raised `cause`."""

    def __init__(self, cause: Exception) -> None:
        self._cause = cause

    def future(self) -> Future[Any]:
        future: Future[Any] = Future()
        error = RayTaskError("write", f"Traceback\n{self._cause!r}", self._cause)
        future.set_exception(error.as_instanceof_cause())
        return future


def _raised(cause: Exception) -> OrchestratorError:
    with pytest.raises(OrchestratorError) as caught:
        asyncio.run(answer("learner-1", _Failed(cause), 1.0))  # pyright: ignore[reportArgumentType]
    return caught.value


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_refuses_is_told_from_a_bug(number: int) -> None:
    error = _raised(OSError(number, "the disk says no", "/runs/x"))
    assert isinstance(error, StorageError)
    assert error.actor == "learner-1"
    assert "the disk says no" in str(error)


@pytest.mark.parametrize("cause", [OSError(errno.ENOENT, "no such file"), ValueError("a bug")])
def test_everything_else_that_nobody_foresaw_is_a_crash(cause: Exception) -> None:
    error = _raised(cause)
    assert isinstance(error, ActorCrashError)
    assert repr(cause) in error.traceback
    assert repr(cause) in str(error)


def test_what_is_raised_on_purpose_arrives_as_it_is() -> None:
    error = CheckpointError("rank 1 could not write its shard")
    assert _raised(error) is error
