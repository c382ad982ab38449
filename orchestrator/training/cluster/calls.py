"""Calls to actors. This is the one place that translates Ray's errors into the errors of
`orchestrator.errors`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
from collections.abc import AsyncGenerator, Coroutine, Iterable
from typing import Any, TypeVar

import ray
from ray.exceptions import (
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)

from orchestrator.errors import DataLostError, OrchestratorError, StorageError, WorkerLostError

T = TypeVar("T")

_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG})
NODE_DIED = "its node died"
"""The reason of a loss that took the whole node."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class ActorCrashError(OrchestratorError):
    """An actor's code raised an unexpected exception; `traceback` is the actor's."""

    def __init__(self, actor: str, traceback: str) -> None:
        super().__init__(actor, traceback)
        self.actor, self.traceback = actor, traceback

    def __str__(self) -> str:
        last = (self.traceback.strip().splitlines() or ["an unknown error"])[-1]
        return f"{self.actor} raised {last}\n{self.traceback}"


async def answer(actor: str, ref: ray.ObjectRef[T], timeout_seconds: float) -> T:
    """Wait for an actor's answer.

    Raises the OrchestratorError that the actor's code raised, unchanged; WorkerLostError if the actor died or
    did not answer in time; DataLostError if the actor is well, but its input was lost with another process;
    StorageError if a disk rejected a write; ActorCrashError for every other exception in the actor.
    """
    future: asyncio.Future[Any] = asyncio.wrap_future(ref.future())  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return await asyncio.wait_for(future, timeout_seconds)
    except RayTaskError as error:  # first, because Ray's object is an instance of its cause's class too
        raise _from_task(actor, error) from error
    except RayActorError as error:
        if error.actor_init_failed:
            raise ActorCrashError(actor, plain_traceback(str(error))) from error
        raise _lost(actor, error) from error
    except (ActorUnschedulableError, NodeDiedError, OutOfMemoryError) as error:
        raise _lost(actor, error) from error
    except ObjectLostError as error:
        raise DataLostError(actor, death_reason(error)) from error
    except TimeoutError as error:
        raise WorkerLostError(actor, f"no answer within {timeout_seconds:g} s") from error


def _lost(actor: str, error: BaseException) -> WorkerLostError:
    reason = death_reason(error)
    return WorkerLostError(actor, reason, node_died=reason == NODE_DIED)


def _from_task(actor: str, error: RayTaskError) -> OrchestratorError:
    cause: object = error.cause
    if isinstance(cause, (RayActorError, ObjectLostError)):
        return DataLostError(actor, death_reason(cause))
    if isinstance(cause, WorkerLostError):  # a process that the actor depends on
        return WorkerLostError(actor, cause.reason)
    if isinstance(cause, OrchestratorError):
        return cause
    if isinstance(cause, OSError) and cause.errno in _DISK_ERRORS:
        return StorageError(actor, str(cause))
    return ActorCrashError(actor, plain_traceback(str(error)))


def plain_traceback(text: str) -> str:
    """Ray's text of a remote error without colours and without its own lines about tasks and actors."""
    lines = _COLOUR.sub("", text).splitlines()
    kept = [
        line for line in lines if not line.startswith("ray::") and "error raised in its creation" not in line
    ]
    return "\n".join(kept).strip()


def death_reason(error: BaseException) -> str:
    """Why an actor or an object was lost, in one line."""
    lines = [line.strip() for line in _COLOUR.sub("", str(error)).splitlines()]
    text = " ".join(line for line in lines if line)
    if "Worker exit type" in text:
        detail = text.partition("Worker exit detail:")[2].strip()
        if "connection error code 2" in detail:  # Ray's words for: it was killed or crashed
            return "its process died (killed, out of memory, or crashed)"
        return (
            f"its process died: {detail.partition('. Some common causes')[0]}"
            if detail
            else "its process died"
        )
    if "node has died" in text or "node died" in text or isinstance(error, NodeDiedError):
        return NODE_DIED
    return next((line for line in lines if line), type(error).__name__)


async def all_or_none(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All answers, in order. Raises the first error at once and cancels the other calls."""
    async with _started(calls) as tasks:
        return await asyncio.gather(*tasks)


async def all_ranks(calls: Iterable[Coroutine[Any, Any, T]], notice_seconds: float) -> list[T]:
    """Like `all_or_none`, for actors that wait for each other.

    When a peer dies, the surviving ranks fail inside their collective, often before the death itself is
    reported. So after a crash this waits up to `notice_seconds` for the root cause: an error that a rank
    raised on purpose, or a WorkerLostError. Without one, the first crash is raised with the others as notes.
    """
    async with _started(calls) as tasks:
        try:
            return await asyncio.gather(*tasks)
        except ActorCrashError as crash:
            errors = await _errors(tasks, notice_seconds)
            causes = [error for error in errors if not isinstance(error, ActorCrashError)]
            if causes:
                raise causes[0] from crash
            for other in errors:
                if other is not crash:
                    crash.add_note(str(other))
            raise


@contextlib.asynccontextmanager
async def _started(calls: Iterable[Coroutine[Any, Any, T]]) -> AsyncGenerator[list[asyncio.Task[T]]]:
    """The calls as running tasks; none of them outlives the body."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _errors(tasks: Iterable[asyncio.Task[Any]], notice_seconds: float) -> list[OrchestratorError]:
    """The errors of all tasks that end in time. Stops waiting as soon as one of them is not a crash."""
    until = asyncio.get_running_loop().time() + notice_seconds
    waiting, errors = set(tasks), list[OrchestratorError]()
    while waiting and all(isinstance(error, ActorCrashError) for error in errors):
        left = max(0.0, until - asyncio.get_running_loop().time())
        done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        errors += [error for task in done if isinstance(error := task.exception(), OrchestratorError)]
        if not done:
            break
    return errors
