"""A pair whose other side dies, or falls silent, while bytes are under way."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, contextmanager
from multiprocessing.connection import Connection

import numpy as np
import pytest

from orchestrator.training.weights.pairs import ControlConnection, MessageType, Pair, host_store, join
from tests.contracts.weight_processes import HOST, SideProcess

PATIENCE = 120.0
SOON = 60.0
SIZE = 1 << 24


def _join_and_sleep(pipe: Connection, timeout_seconds: float) -> None:
    """The other side: it comes, and never moves a byte."""
    port, store_port = pipe.recv()
    with socket.create_connection((HOST, port)) as connection:
        pair = join(
            ControlConnection(connection, timeout_seconds), "gloo", (HOST, store_port), 1, 1, timeout_seconds
        )
        pipe.send("joined")
        signal.pause()
        pair.close()


@contextmanager
def _paired(timeout_seconds: float) -> Generator[tuple[Pair, SideProcess]]:
    """Rank 0 of a pair, and the process of the other."""
    with (
        closing(SideProcess(_join_and_sleep, PATIENCE)) as other,
        socket.create_server((HOST, 0)) as listener,
    ):
        store = host_store(HOST, timeout_seconds)
        other.tell((listener.getsockname()[1], store.port))
        connection, _ = listener.accept()
        line = ControlConnection(connection, timeout_seconds)
        with closing(join(line, "gloo", (HOST, store.port), 1, 0, timeout_seconds)) as pair:
            assert other.answer() == "joined"
            yield pair, other


@pytest.fixture
def patient() -> Generator[tuple[Pair, SideProcess]]:
    with _paired(PATIENCE) as paired:
        yield paired


@pytest.fixture
def impatient() -> Generator[tuple[Pair, float]]:
    """Rank 0 of a pair, and its time limit in seconds: as short as this machine can join within."""
    with ExitStack() as stack:
        for limit in (0.5, 2.0, 8.0, 32.0):
            try:
                pair, _ = stack.enter_context(_paired(limit))
            except OSError:
                continue
            yield pair, limit
            return
        pytest.fail("it can't be joined")


MOVES: list[Callable[[Pair], None]] = [
    lambda pair: pair.send(np.zeros(SIZE, np.uint8)),
    lambda pair: pair.receive(np.zeros(SIZE, np.uint8)),
    lambda pair: _ignore(pair.line.receive()),
    lambda pair: _ignore(pair.line.wait()),
]
"""All that may wait for the other side."""


def _ignore(_: object) -> None:
    pass


@pytest.mark.parametrize("move", MOVES)
def test_a_death_is_noticed_at_once(patient: tuple[Pair, SideProcess], move: Callable[[Pair], None]) -> None:
    pair, other = patient
    timer = threading.Timer(0.2, other.kill)
    timer.start()
    started = time.monotonic()
    with pytest.raises(ConnectionError):
        move(pair)
    assert time.monotonic() - started < SOON
    timer.join()


@pytest.mark.parametrize("move", MOVES[:3])
def test_silence_is_given_up_in_time(impatient: tuple[Pair, float], move: Callable[[Pair], None]) -> None:
    pair, limit = impatient
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        move(pair)
    assert 0.8 * limit < time.monotonic() - started < limit + SOON


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\n\r\n", bytes([MessageType.OPEN]) + bytes([255]) * 8])
def test_a_stranger_is_sent_away(junk: bytes) -> None:
    """What it says is neither read to its end nor given memory."""
    with socket.create_server((HOST, 0)) as listener, socket.create_connection(listener.getsockname()) as it:
        line = ControlConnection(listener.accept()[0], PATIENCE)
        it.sendall(junk)
        with pytest.raises(ConnectionAbortedError, match="does not speak this protocol"):
            line.wait()
        line.close()
