"""Two processes that pass buckets: a line for short messages, and beside it a torch.distributed group of two
ranks for the bytes.

    rank 0    accepts a line, gives it a number   --WELCOME number, store port-->   worker
    both      join the group "pair/<number>" in the TCPStore that rank 0 hosts

Every pair has a group of its own, never the default one, which is the learner's. So the death of one side
fails one group, of which nobody else is a member.

The line is there because a group can't wait: a receive that is posted over gloo fails after its time limit,
and over NCCL it occupies the GPU. So whatever may take minutes is waited for on the line, and bytes are only
received when they are known to be on their way. A process that dies closes its line and its group at once;
one that falls silent (its machine lost power) is given up after `timeout_seconds`.

Everything that goes wrong here is an OSError: ConnectionError if the other side is gone, TimeoutError
if it is silent.
"""

from __future__ import annotations

import contextlib
import enum
import os
import re
import socket
import struct
import threading
from collections.abc import Generator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed import distributed_c10d

from orchestrator.training.weights.config import Backend

Bytes = NDArray[np.uint8]

_FRAME = struct.Struct("!BQ")
"""Kind of a message, bytes that follow."""
_LONGEST_REQUEST = 64
"""Bytes: who comes to a publisher may be anybody."""
_BLOCKING_WAIT = "TORCH_NCCL_BLOCKING_WAIT"
_WHERE_IN_TORCH = re.compile(r"^\[[^\]]*\.cc:\d+\] ")
_environment = threading.Lock()
"""Held while a variable of the process's environment is changed."""


class MessageType(enum.IntEnum):
    """What is said on a line."""

    WELCOME = 1
    OPEN = 2
    NEXT = 3
    ENOUGH = 4
    BUCKET = 5
    END = 6
    GONE = 7


_WORDS = frozenset(MessageType)


class ControlConnection:
    """A TCP connection that carries one message at a time, either way."""

    def __init__(self, connection: socket.socket, timeout_seconds: float) -> None:
        self._socket, self._timeout_seconds = connection, timeout_seconds
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # A peer that is silent is asked once after half the time, and given up at the end of it.
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
            connection.setsockopt(socket.IPPROTO_TCP, option, max(1, round(timeout_seconds / 2)))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 1)

    @property
    def local_host(self) -> str:
        """The address of this host on the network that the line goes over."""
        return self._socket.getsockname()[0]

    def send(self, word: MessageType, content: bytes = b"") -> None:
        """Say it."""
        self._socket.settimeout(self._timeout_seconds)
        self._socket.sendall(_FRAME.pack(word, len(content)) + content)

    def receive(self) -> tuple[MessageType, bytes]:
        """The next message, which is due."""
        self._socket.settimeout(self._timeout_seconds)
        return self._message(None)

    def wait(self) -> tuple[MessageType, bytes]:
        """The next request, whenever it comes; the other side may have other things to do for hours."""
        self._socket.settimeout(None)
        return self._message(_LONGEST_REQUEST)

    def close(self) -> None:
        """Close it; whoever waits on it, here or there, gets a ConnectionError."""
        with contextlib.suppress(OSError):  # the other side was quicker
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _message(self, longest: int | None) -> tuple[MessageType, bytes]:
        word, length = _FRAME.unpack(self._exactly(_FRAME.size))
        if word not in _WORDS or (longest is not None and length > longest):
            raise ConnectionAbortedError("it does not speak this protocol")
        return MessageType(word), bytes(self._exactly(length))

    def _exactly(self, length: int) -> bytearray:
        content = bytearray(length)
        view, got = memoryview(content), 0
        while got < length:
            count = self._socket.recv_into(view[got:])
            if count == 0:
                raise ConnectionResetError("it closed the connection")
            got += count
        return content


class Group(Protocol):
    """Two ranks. Each `send` on one side meets one `receive` of as many bytes, more than none, on the other.
    Both raise RuntimeError, torch's one class for all that can happen to a group.
    """

    def send(self, data: Bytes) -> None:
        """Send an array, which may be read-only."""
        ...

    def receive(self, data: Bytes) -> None:
        """Fill an array."""
        ...

    def close(self) -> None:
        """Leave; what is under way on the other side fails."""
        ...


class GlooGroup:
    """Over TCP, straight from and into host memory, by the network that the line goes over."""

    def __init__(
        self, store: PrefixStore, rank: int, line: ControlConnection, timeout_seconds: float
    ) -> None:
        factory: Any = distributed_c10d.ProcessGroupGloo
        options = factory._Options()
        options._timeout = timedelta(seconds=timeout_seconds)
        options._devices = [factory.create_device(hostname=line.local_host)]
        options._threads = 1
        self._group: Any = factory(store, rank, 2, options)
        self._other = 1 - rank

    def send(self, data: Bytes) -> None:
        """See `Group.send`."""
        self._group.send([_tensor(data)], self._other, 0).wait()

    def receive(self, data: Bytes) -> None:
        """See `Group.receive`."""
        self._group.recv([_tensor(data)], self._other, 0).wait()

    def close(self) -> None:
        """See `Group.close`."""
        self._group = None


class NcclGroup:
    """Between two GPUs, one on each side; a bucket is staged on each. On a stream of its own, so that it
    waits for no kernel of the training step.

    Unproven: there was no machine with two GPUs to run it on.
    """

    def __init__(
        self, store: PrefixStore, rank: int, line: ControlConnection, timeout_seconds: float
    ) -> None:
        del line  # NCCL chooses its networks itself
        factory: Any = distributed_c10d.ProcessGroupNCCL
        options = factory.Options()
        options.global_ranks_in_group = [0, 1]
        options._timeout = timedelta(seconds=timeout_seconds)
        with _blocking_wait():
            self._group: Any = factory(store, rank, 2, options)
        self._other = 1 - rank
        self._stream = torch.cuda.Stream()
        self._staged = torch.empty(0, dtype=torch.uint8, device="cuda")

    def send(self, data: Bytes) -> None:
        """See `Group.send`."""
        with torch.cuda.stream(self._stream):
            staged = self._stage(data.nbytes).copy_(_tensor(data))
            self._group.send([staged], self._other, 0).wait()

    def receive(self, data: Bytes) -> None:
        """See `Group.receive`."""
        with torch.cuda.stream(self._stream):
            staged = self._stage(data.nbytes)
            self._group.recv([staged], self._other, 0).wait()
            _tensor(data).copy_(staged)

    def close(self) -> None:
        """See `Group.close`."""
        self._group.abort()

    def _stage(self, size: int) -> torch.Tensor:
        if self._staged.nbytes < size:
            self._staged = torch.empty(size, dtype=torch.uint8, device="cuda")
        return self._staged[:size]


@contextlib.contextmanager
def _blocking_wait() -> Generator[None]:
    """An NCCL group that is made meanwhile has no watchdog, which would end the process when the other side
    is lost: its `wait` waits, for as long as its time limit, and raises. The constructor reads the variable
    and nothing does later, so that the learner's own group keeps what it has.
    """
    with _environment:
        before = os.environ.get(_BLOCKING_WAIT)
        os.environ[_BLOCKING_WAIT] = "1"
        try:
            yield
        finally:
            del os.environ[_BLOCKING_WAIT]
            if before is not None:
                os.environ[_BLOCKING_WAIT] = before


GROUPS: dict[Backend, type[GlooGroup | NcclGroup]] = {"gloo": GlooGroup, "nccl": NcclGroup}


def host_store(host: str, timeout_seconds: float) -> TCPStore:
    """A store for the groups of this process to find their other ranks in, on a port of `host` that is free.

    It listens on that address alone.
    """
    listener = socket.create_server((host, 0), family=family_of(host))
    port: int = listener.getsockname()[1]
    return TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_seconds),
        master_listen_fd=listener.detach(),
    )


@dataclass(slots=True)
class Pair:
    """One side of a pair: its line and its group."""

    line: ControlConnection
    _group: Group

    def send(self, data: Bytes) -> None:
        """Send an array, which may be read-only, to the other side, which receives one of that size."""
        with _as_os_errors():
            self._group.send(data)

    def receive(self, data: Bytes) -> None:
        """Fill an array with what the other side sends."""
        with _as_os_errors():
            self._group.receive(data)

    def close(self) -> None:
        """Leave; what is under way on the other side fails."""
        self.line.close()
        self._group.close()


def join(
    line: ControlConnection,
    backend: Backend,
    store: tuple[str, int],
    number: int,
    rank: int,
    timeout_seconds: float,
) -> Pair:
    """Pair `number`, whose sides find each other in the store at this host and port. Waits for the other."""
    with _as_os_errors():
        # A client of its own for each pair: one that waits for a key keeps all who share it waiting.
        client = TCPStore(
            *store, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout_seconds)
        )
        group = GROUPS[backend](PrefixStore(f"pair/{number}", client), rank, line, timeout_seconds)
    return Pair(line, group)


def family_of(host: str) -> socket.AddressFamily:
    """IPv4 or IPv6."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@contextlib.contextmanager
def _as_os_errors() -> Generator[None]:
    """Torch raises RuntimeError for all that can happen to a group or a store."""
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        reason = _WHERE_IN_TORCH.sub("", reason)
        silent = any(word in reason.lower() for word in ("timed out", "timeout"))
        raise (TimeoutError if silent else ConnectionResetError)(reason) from error


def _tensor(data: Bytes) -> torch.Tensor:
    """The same bytes. Without numpy's mark that they are read-only, which torch can't express and warns of:
    what is sent is only read.
    """
    if data.flags.writeable:
        return torch.from_numpy(data)
    return torch.from_numpy(np.asarray(_Writeable(data)))


class _Writeable:
    """A read-only array, described to numpy as one that may be written."""

    def __init__(self, data: Bytes) -> None:
        self._data = data
        described = data.__array_interface__
        self.__array_interface__ = {**described, "data": (described["data"][0], False)}
