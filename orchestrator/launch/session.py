"""Opens and closes a session such as Ray's on a thread of its own.

Starting Ray takes seconds and blocks. In a separate thread, it leaves the event loop free to receive a
request to stop, and it cannot replace the signal handlers of the process, because Python allows that
only in the main thread.

The thread lives as long as the session, because Ray's processes are killed when the thread that started them
ends (PR_SET_PDEATHSIG). They get their own process groups, so that a signal to the group of this process
(Ctrl-C, a closed terminal, `timeout`) does not stop the cluster before the checkpoint is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor

SessionFactory = Callable[[], contextlib.AbstractContextManager[None]]

_starting_threads: set[int] = set()
"""Threads whose child processes get process groups of their own."""


@contextlib.asynccontextmanager
async def open_session(factory: SessionFactory) -> AsyncGenerator[None]:
    """Keep the session of `factory` open while the body runs. If the caller is cancelled while the session is
    being opened, it is closed as soon as it is open.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="session") as thread:
        loop = asyncio.get_running_loop()
        session = factory()

        def close() -> bool | None:
            return session.__exit__(*sys.exc_info())

        opening = loop.run_in_executor(thread, _open, session)
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait({opening})
            if opening.exception() is None:
                await loop.run_in_executor(thread, close)
            raise
        try:
            yield
        finally:
            await loop.run_in_executor(thread, close)


def _open(session: contextlib.AbstractContextManager[None]) -> None:
    thread = threading.get_ident()
    _starting_threads.add(thread)
    try:
        session.__enter__()
    finally:
        _starting_threads.discard(thread)


def _own_process_group() -> None:
    if threading.get_ident() in _starting_threads:
        os.setpgid(0, 0)


os.register_at_fork(after_in_child=_own_process_group)
