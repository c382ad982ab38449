"""A session on its own thread."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import threading
from collections.abc import Generator

import pytest

from orchestrator.launch.session import open_session


def _as_ray_does() -> None:
    """Like Ray, which starts its processes with a function that runs before
    exec: only then do fork hooks run.
    """


class Session:
    """Takes as long to open as the test wants, and starts a child process."""

    def __init__(self) -> None:
        self.may_open = threading.Event()
        self.steps: list[tuple[str, int]] = []
        self.group_of_child = 0

    @contextlib.contextmanager
    def open(self) -> Generator[None]:
        assert self.may_open.wait(60)
        with subprocess.Popen(["sleep", "100"], preexec_fn=_as_ray_does) as child:  # noqa: PLW1509
            self.group_of_child = os.getpgid(child.pid)
            self.steps.append(("open", threading.get_ident()))
            try:
                yield
            finally:
                self.steps.append(("close", threading.get_ident()))
                child.kill()


def test_a_session_opens_and_closes_on_one_thread_and_its_children_have_their_own_process_group() -> None:
    session = Session()
    session.may_open.set()

    async def scenario() -> None:
        async with open_session(session.open):
            assert [what for what, _ in session.steps] == ["open"]

    asyncio.run(scenario())
    (_, opened_on), (_, closed_on) = session.steps
    assert opened_on == closed_on != threading.get_ident()
    assert session.group_of_child != os.getpgid(0)
    with subprocess.Popen(["sleep", "100"], preexec_fn=_as_ray_does) as other:  # noqa: PLW1509
        assert os.getpgid(other.pid) == os.getpgid(0)  # only the session's children have their own
        other.kill()


def test_a_session_that_is_cancelled_while_opening_is_closed_once_open() -> None:
    session = Session()

    async def scenario() -> None:
        async def use() -> None:
            async with open_session(session.open):
                raise AssertionError("it was cancelled")

        task = asyncio.ensure_future(use())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
        session.may_open.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert [what for what, _ in session.steps] == ["open", "close"]


def test_an_error_while_opening_is_raised() -> None:
    @contextlib.contextmanager
    def broken() -> Generator[None]:
        raise OSError("no Ray")
        yield

    async def scenario() -> None:
        async with open_session(broken):
            raise AssertionError

    with pytest.raises(OSError, match="no Ray"):
        asyncio.run(scenario())
