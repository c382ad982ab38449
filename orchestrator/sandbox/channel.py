"""JSON messages over a socket to a process that is not trusted.

    4 bytes: length of the message, unsigned, big-endian      then that many bytes of JSON (UTF-8)

Junk, a huge length, half a message or a peer that stops reading raise an error within the timeout; nothing
that arrives is executed, and nothing waits for ever.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from typing import Any, NoReturn

MAX_BYTES = 64 * 1024 * 1024
"""The longest message that is sent or accepted."""
_LENGTH = struct.Struct(">I")


class ProtocolError(Exception):
    """The peer sent something that is not a message."""


class Channel:
    """One end. `timeout` is in seconds; None waits for ever. Not for use by several threads at once, but one
    may send while another one receives."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._received = bytearray()

    def fileno(self) -> int:
        """The socket's descriptor, for `select`."""
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send(self, message: object, timeout: float | None = None) -> None:
        """Raises TimeoutError if the peer does not read, OSError if it is gone, ValueError for a message
        longer than `MAX_BYTES`."""
        body = json.dumps(message).encode()
        if len(body) > MAX_BYTES:
            raise ValueError(f"a message of {len(body)} bytes; at most {MAX_BYTES} can be sent")
        left = memoryview(_LENGTH.pack(len(body)) + body)
        deadline = None if timeout is None else time.monotonic() + timeout
        while left:
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline)

    def receive(self, timeout: float | None = None) -> Any:  # noqa: ANN401 - any JSON
        """The next message. Raises TimeoutError, ProtocolError, OSError, or EOFError if the peer is gone."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            message = self._take()
            if message is not None:
                return _parsed(message)
            self._wait(select.POLLIN, deadline)
            self._read()

    def received(self) -> list[Any]:
        """The complete messages that have arrived; does not wait. Raises like `receive`."""
        if not self._take_is_due():
            self._read()
        messages: list[Any] = []
        while (message := self._take()) is not None:
            messages.append(_parsed(message))
        return messages

    def _take_is_due(self) -> bool:
        size = self._size()
        return size is not None and len(self._received) >= size

    def _size(self) -> int | None:
        """Bytes of the next message with its length; None until the length has arrived."""
        if len(self._received) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._received)
        if length > MAX_BYTES:
            raise ProtocolError(f"announced a message of {length} bytes")
        return _LENGTH.size + length

    def _take(self) -> bytes | None:
        size = self._size()
        if size is None or len(self._received) < size:
            return None
        message = bytes(self._received[_LENGTH.size : size])
        del self._received[:size]
        return message

    def _read(self) -> None:
        try:
            data = self._socket.recv(1 << 20)
        except BlockingIOError:
            return
        if not data:
            raise EOFError("the other end was closed")
        self._received += data

    def _wait(self, event: int, deadline: float | None) -> None:
        poll = select.poll()
        poll.register(self._socket, event)
        left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
        if not poll.poll(None if left is None else left * 1000):
            raise TimeoutError


def _parsed(body: bytes) -> Any:  # noqa: ANN401 - any JSON
    try:
        return json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:  # also JSONDecodeError and UnicodeDecodeError
        raise ProtocolError(f"sent {body[:40]!r}, which is not JSON") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
