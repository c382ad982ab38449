"""Calls to actors, and what their failures mean to the loop: classified here, once."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncGenerator, Coroutine, Iterable
from typing import Any, TypeVar

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from orchestrator.errors import DataLostError, OrchestratorError, StorageError, WorkerLostError

T = TypeVar("T")

_REFUSED_BY_A_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG})


class ActorCrashError(OrchestratorError):
    """An actor's code raised something nobody foresaw; `traceback` is the actor's."""

    def __init__(self, actor: str, traceback: str) -> None:
        super().__init__(actor, traceback)
        self.actor, self.traceback = actor, traceback

    def __str__(self) -> str:
        last = self.traceback.strip().splitlines()[-1]
        return f"{self.actor} raised {last}\n{self.traceback}"


async def answer(actor: str, ref: ray.ObjectRef[T], timeout_seconds: float) -> T:
    """Wait for an actor's answer.

    Raises WorkerLostError if the actor died or did not answer in time; DataLostError if it lives but what it
    was to work on died with another; the OrchestratorError that its code raised on purpose; StorageError if
    a disk refused to be written to; ActorCrashError for anything else it raised.
    """
    future: asyncio.Future[Any] = asyncio.wrap_future(ref.future())  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return await asyncio.wait_for(future, timeout_seconds)
    except RayTaskError as error:  # before the others: what it is made of is an instance of its cause, too
        cause: object = error.cause
        if isinstance(cause, (RayActorError, ObjectLostError)):
            raise DataLostError(actor, _first_line(cause)) from error
        if isinstance(cause, OrchestratorError):
            raise cause from error
        if isinstance(cause, OSError) and cause.errno in _REFUSED_BY_A_DISK:
            raise StorageError(actor, str(cause)) from error
        # Ray's class inherits from the cause's too: its text is the actor's traceback, its other attributes
        # are the cause's.
        raise ActorCrashError(actor, str(error)) from error
    except RayActorError as error:
        raise WorkerLostError(actor, _first_line(error)) from error
    except ObjectLostError as error:
        raise DataLostError(actor, _first_line(error)) from error
    except TimeoutError as error:
        raise WorkerLostError(actor, f"no answer in {timeout_seconds:g} s") from error


async def all_or_none(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All answers, in order. The first error is raised at once; the other calls are no longer waited for."""
    async with _begun(calls) as tasks:
        return await asyncio.gather(*tasks)


async def all_ranks(calls: Iterable[Coroutine[Any, Any, T]], notice_seconds: float) -> list[T]:
    """Like `all_or_none`, for actors that wait for each other. One whose peer is gone raises whatever its
    collective raises, and is often heard before the peer: so after a crash the others are waited for, for
    `notice_seconds` at the most. What one of them raised on purpose, or WorkerLostError, is raised instead;
    if there is nothing of the kind, the first crash, with the others' as notes.
    """
    async with _begun(calls) as tasks:
        try:
            return await asyncio.gather(*tasks)
        except ActorCrashError as crash:
            errors = await _errors(tasks, notice_seconds)
            foreseen = [error for error in errors if not isinstance(error, ActorCrashError)]
            if foreseen:
                raise foreseen[0] from crash
            for other in errors:
                if other is not crash:
                    crash.add_note(str(other))
            raise


@contextlib.asynccontextmanager
async def _begun(calls: Iterable[Coroutine[Any, Any, T]]) -> AsyncGenerator[list[asyncio.Task[T]]]:
    """Their tasks, none of which is left at the end."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _errors(tasks: Iterable[asyncio.Task[Any]], notice_seconds: float) -> list[OrchestratorError]:
    """Of all tasks that end in time; not waiting for more once one is no crash."""
    until = asyncio.get_running_loop().time() + notice_seconds
    waiting, errors = set(tasks), list[OrchestratorError]()
    while waiting and all(isinstance(error, ActorCrashError) for error in errors):
        left = max(0.0, until - asyncio.get_running_loop().time())
        done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        errors += [error for task in done if isinstance(error := task.exception(), OrchestratorError)]
        if not done:
            break
    return errors


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
