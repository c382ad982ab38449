"""A pair whose other side dies, or falls silent, while bytes are under way."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from multiprocessing.connection import Connection

import numpy as np
import pytest

from orchestrator.training.weights.pairs import Line, Pair, Word, host_store, join
from tests.contracts.weight_processes import HOST, SideProcess

PATIENCE = 20.0
SIZE = 1 << 24


def _join_and_sleep(pipe: Connection, timeout_seconds: float) -> None:
    """The other side: it comes, and never moves a byte."""
    with socket.create_connection((HOST, pipe.recv())) as connection:
        pair = join(Line(connection, timeout_seconds), "gloo", (HOST, pipe.recv()), 1, 1, timeout_seconds)
        pipe.send("joined")
        signal.pause()
        pair.close()


def _paired(timeout_seconds: float) -> Generator[tuple[Pair, SideProcess]]:
    """Rank 0 of a pair, and the process of the other."""
    with (
        closing(SideProcess(_join_and_sleep, PATIENCE)) as other,
        socket.create_server((HOST, 0)) as listener,
    ):
        store = host_store(HOST, timeout_seconds)
        other.pipe.send(listener.getsockname()[1])
        other.pipe.send(store.port)
        connection, _ = listener.accept()
        line = Line(connection, timeout_seconds)
        with closing(join(line, "gloo", (HOST, store.port), 1, 0, timeout_seconds)) as pair:
            assert other.pipe.recv() == "joined"
            yield pair, other


@pytest.fixture
def patient() -> Generator[tuple[Pair, SideProcess]]:
    yield from _paired(PATIENCE)


@pytest.fixture
def impatient() -> Generator[tuple[Pair, SideProcess]]:
    yield from _paired(0.5)


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
    assert time.monotonic() - started < 5
    timer.join()


@pytest.mark.parametrize("move", MOVES[:3])
def test_silence_is_given_up_in_time(
    impatient: tuple[Pair, SideProcess], move: Callable[[Pair], None]
) -> None:
    pair, _ = impatient
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        move(pair)
    assert 0.4 < time.monotonic() - started < 5


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\n\r\n", bytes([Word.OPEN]) + bytes([255]) * 8])
def test_a_stranger_is_sent_away(junk: bytes) -> None:
    """What it says is neither read to its end nor given memory."""
    with socket.create_server((HOST, 0)) as listener, socket.create_connection(listener.getsockname()) as it:
        line = Line(listener.accept()[0], 1.0)
        it.sendall(junk)
        with pytest.raises(ConnectionAbortedError, match="does not speak this protocol"):
            line.wait()
        line.close()
