"""How failures of actors are classified for the loop."""

from __future__ import annotations

import asyncio
import errno
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayActorError, RayTaskError

from orchestrator.errors import CheckpointError, OrchestratorError, StorageError, WorkerLostError
from orchestrator.training.cluster.calls import ActorCrashError, all_ranks, answer


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
def test_disk_errors_are_distinguished_from_bugs(number: int) -> None:
    error = _raised(OSError(number, "the disk says no", "/runs/x"))
    assert isinstance(error, StorageError)
    assert error.actor == "learner-1"
    assert "the disk says no" in str(error)


@pytest.mark.parametrize(
    "cause", [OSError(errno.ENOENT, "no such file"), ValueError("a bug"), TimeoutError("its own")]
)
def test_other_unexpected_errors_are_crashes(cause: Exception) -> None:
    error = _raised(cause)
    assert isinstance(error, ActorCrashError)
    assert repr(cause) in error.traceback
    assert repr(cause) in str(error)


def test_deliberate_errors_are_passed_on_unchanged() -> None:
    error = CheckpointError("rank 1 could not write its shard")
    assert _raised(error) is error


def test_a_process_that_an_actor_depends_on_is_lost_with_the_actor() -> None:
    error = _raised(WorkerLostError("vllm", "a process of vLLM died"))
    assert str(error).endswith(" was lost: a process of vLLM died")
    assert not str(error).startswith("vllm")


async def _after(seconds: float, error: Exception | None = None) -> str:
    await asyncio.sleep(seconds)
    if error is not None:
        raise error
    return "done"


CRASH = ActorCrashError("learner-0", "RuntimeError: Connection closed by peer")
LOST = WorkerLostError("learner-1", "killed")


def test_the_death_of_a_peer_has_precedence_over_its_consequences() -> None:
    with pytest.raises(WorkerLostError, match="learner-1 was lost: killed") as caught:
        asyncio.run(all_ranks([_after(0, CRASH), _after(0), _after(0.05, LOST)], 60.0))
    assert caught.value.__cause__ is CRASH


def test_the_crash_of_one_rank_is_reported_although_its_peers_wait() -> None:
    with pytest.raises(ActorCrashError, match="Connection closed by peer"):
        asyncio.run(all_ranks([_after(3600), _after(0, CRASH)], 0.05))


def test_crashes_of_all_ranks_are_reported() -> None:
    cause = ActorCrashError("learner-1", "ValueError: a bug")
    with pytest.raises(ActorCrashError, match="Connection closed by peer") as caught:
        asyncio.run(asyncio.wait_for(all_ranks([_after(0, CRASH), _after(0.01, cause)], 3600.0), 60.0))
    assert any("learner-1 raised ValueError: a bug" in note for note in caught.value.__notes__)


def test_a_deliberate_error_of_a_peer_is_the_cause() -> None:
    full = StorageError("learner-1", "no space left")
    with pytest.raises(StorageError, match="no space left"):
        asyncio.run(all_ranks([_after(0, CRASH), _after(0.05, full)], 3600.0))


def test_deliberate_errors_and_results_of_ranks_are_passed_on() -> None:
    refused = CheckpointError("rank 1 could not write its shard")
    with pytest.raises(CheckpointError, match="could not write"):
        asyncio.run(all_ranks([_after(3600), _after(0, refused)], 3600.0))
    assert asyncio.run(all_ranks([_after(0.01), _after(0)], 1.0)) == ["done", "done"]


def _lost(error: Exception) -> OrchestratorError:
    """The error that the driver raises for an error of Ray itself."""
    future: Future[Any] = Future()
    future.set_exception(error)
    handle: Any = SimpleNamespace(future=lambda: future)
    with pytest.raises(OrchestratorError) as caught:
        asyncio.run(answer("rollout-0", handle, 1.0))
    return caught.value


RAY_TEXT = (
    "\x1b[36mray::RolloutActor.generate()\x1b[39m (pid=7, ip=10.0.0.5, actor_id=ab, repr=<Actor>)\n"
    '  File "engine.py", line 3, in generate\n'
    "    raise KeyError('tests')\n"
    "\x1b[31mKeyError\x1b[39m: 'tests'"
)


def test_an_unexpected_error_is_shown_without_rays_wrapping_and_colours() -> None:
    class Raw:
        def future(self) -> Future[Any]:
            future: Future[Any] = Future()
            error = RayTaskError("generate", RAY_TEXT, KeyError("tests"))
            future.set_exception(error.as_instanceof_cause())
            return future

    with pytest.raises(ActorCrashError) as caught:
        asyncio.run(answer("rollout-0", Raw(), 1.0))  # pyright: ignore[reportArgumentType]
    assert str(caught.value).startswith("rollout-0 raised KeyError: 'tests'\n")
    assert 'File "engine.py", line 3' in caught.value.traceback
    for wrapping in ("\x1b", "ray::", "actor_id", "repr="):
        assert wrapping not in str(caught.value)


def test_a_constructor_that_fails_is_a_crash_and_not_a_lost_worker() -> None:
    """A new process would fail in the same way."""
    error = ActorDiedError(RayTaskError("RolloutActor.__init__", RAY_TEXT, KeyError("tests")))
    crash = _lost(error)
    assert isinstance(crash, ActorCrashError)
    assert str(crash).startswith("rollout-0 raised KeyError: 'tests'\n")
    assert "\x1b" not in str(crash)
    assert "creation task" not in str(crash)


KILLED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: RolloutActor\n\tactor_id: ab\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR "
    "Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file. Some common "
    "causes include: (1) ..."
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (KILLED, "its process died (killed, out of memory, or crashed)"),
        (
            "Worker exit type: INTENDED Worker exit detail: Owner's node died. Some common causes: x",
            "its process died: Owner's node died",
        ),
        ("The actor died because its node has died. Node Id: ab", "its node died"),
        ("\x1b[31mSomething else\x1b[39m\nwith details", "Something else"),
    ],
)
def test_the_reason_of_a_lost_worker_is_one_plain_line(text: str, reason: str) -> None:
    error = _lost(RayActorError(error_msg=text))
    assert isinstance(error, WorkerLostError)
    assert error.reason == reason


@pytest.mark.parametrize("error", [NodeDiedError("the node died"), OutOfMemoryError("over the limit")])
def test_other_losses_of_ray_are_lost_workers_too(error: Exception) -> None:
    assert isinstance(_lost(error), WorkerLostError)
