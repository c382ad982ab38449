from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from orchestrator.sandbox.channel import MAX_BYTES, Channel, ProtocolError

WAIT = 20.0
"""Seconds after which a test fails. Nothing here takes that long."""


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    """A channel, and the raw socket of its peer."""
    near, far = socket.socketpair()
    channel = Channel(near)
    yield channel, far
    channel.close()
    far.close()


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def test_messages_arrive_whole_and_in_order() -> None:
    near, far = map(Channel, socket.socketpair())
    for message in ({"a": [1, 2.5, None]}, "\ud800 é 😀", []):
        near.send(message, WAIT)
    assert [far.receive(WAIT), far.receive(WAIT), far.receive(WAIT)] == [
        {"a": [1, 2.5, None]},
        "\ud800 é 😀",
        [],
    ]
    near.close()
    far.close()


def test_received_returns_complete_messages(ends: tuple[Channel, socket.socket]) -> None:
    channel, peer = ends
    assert channel.received() == []
    peer.sendall(framed(b"1") + framed(b"2") + framed(b"[3]")[:5])
    assert channel.received() == [1, 2]
    assert channel.received() == []
    peer.sendall(b"3]")
    assert channel.received() == [[3]]


@pytest.mark.parametrize(
    ("junk", "why"),
    [
        (b"\xff" * 8, "announced a message of 4294967295 bytes"),
        (struct.pack(">I", MAX_BYTES + 1), "announced"),
        (framed(b"Traceback (most recent"), "is not JSON"),
        (framed(b"\xff\xfe"), "is not JSON"),
        (framed(b"NaN"), "is not JSON"),
        (framed(b"[" * 100_000), "is not JSON"),
        (framed(b"1" * 10_000), "is not JSON"),
        (framed(b""), "is not JSON"),
    ],
)
def test_malformed_messages_are_rejected(ends: tuple[Channel, socket.socket], junk: bytes, why: str) -> None:
    channel, peer = ends
    peer.sendall(junk)
    with pytest.raises(ProtocolError, match=why):
        channel.receive(WAIT)


@pytest.mark.parametrize("half", [b"", b"\0\0", framed(b"[1, 2]")[:-1]])
def test_half_a_message_times_out(ends: tuple[Channel, socket.socket], half: bytes) -> None:
    channel, peer = ends
    peer.sendall(half)
    with pytest.raises(TimeoutError):
        channel.receive(0.01)


def test_a_closed_peer(ends: tuple[Channel, socket.socket]) -> None:
    channel, peer = ends
    peer.sendall(framed(b"1") + b"\0")
    peer.close()
    assert channel.receive(WAIT) == 1
    with pytest.raises(EOFError):
        channel.receive(WAIT)


def test_a_peer_that_does_not_read(ends: tuple[Channel, socket.socket]) -> None:
    channel, _ = ends
    with pytest.raises(TimeoutError):
        channel.send("x" * 10_000_000, 0.01)


def test_a_message_that_is_too_long_is_not_sent(
    ends: tuple[Channel, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.sandbox.channel.MAX_BYTES", 10)
    with pytest.raises(ValueError, match="a message of 22 bytes"):
        ends[0].send("x" * 20)
