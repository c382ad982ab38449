"""The learner's ranks of one host write a version together, each its part, into the segment that
rank 0 publishes:

    rank 0    picks a segment -> says which -> writes its part -> hears that all are done -> publishes
    others                       hear which -> write their part -> say that they are done

They talk over a Unix socket in Linux's abstract namespace, which leaves no file behind and tells at once when
a process dies. Whoever is at the other end must run as the same user.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import WorkerLostError
from orchestrator.training.records import WeightVersion
from orchestrator.training.tensors.write_plan import WritePlan
from orchestrator.training.weights.segments import Segment, map_blocks

KEPT = 2
"""Segments that a rank keeps mapped: as many as rank 0 writes in turn."""

_ORDER = struct.Struct("4q")
"""Version; number of the segment, its descriptor in rank 0's process, its blocks."""
_DONE = struct.Struct("q")
"""Version."""
_ANOTHER = "another rank of the learner"
_CREDENTIALS = struct.Struct("3i")
"""What SO_PEERCRED tells: process, user, group."""


class PeerWriters:
    """The other ranks, as rank 0 sees them."""

    def __init__(self, name: str, count: int, timeout_seconds: float) -> None:
        """Listens under `name`, which nobody else on the host uses; `count` ranks are to come. None is waited
        for longer than `timeout_seconds`. Raises OSError if the name is taken.
        """
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._listener.bind(_abstract(name))
        except OSError:
            self._listener.close()
            raise
        self._listener.listen(count)
        self._listener.settimeout(timeout_seconds)
        self._count, self.timeout_seconds = count, timeout_seconds
        self._connections: list[socket.socket] = []
        self._closed = False

    def start(self, version: WeightVersion, segment: Segment, blocks: int) -> None:
        """Tell them to write. The first time it waits until all have come.

        Raises WorkerLostError if they don't, PermissionError for one of another user, ConnectionError
        if one is gone.
        """
        if self._closed:
            raise ConnectionError("weights: the other ranks were let go when a publish failed")
        while len(self._connections) < self._count:
            connection = self._accepted()
            _require_same_user(connection)
            self._connections.append(connection)
        order = _ORDER.pack(version, segment.number, segment.descriptor, blocks)
        for connection in self._connections:
            connection.send(order)

    def wait(self, version: WeightVersion) -> None:
        """Until all are done. Raises ConnectionError if one is gone, WorkerLostError if one is silent."""
        for connection in self._connections:
            (done,) = _DONE.unpack(_receive(connection, _DONE.size, self.timeout_seconds))
            if done != version:
                raise ConnectionError(f"weights: got version {done} of a rank, expected {version}")

    def close(self) -> None:
        """Let the other ranks go."""
        self._closed = True
        for connection in (*self._connections, self._listener):
            connection.close()

    def _accepted(self) -> socket.socket:
        try:
            return self._listener.accept()[0]
        except TimeoutError as error:
            reason = f"{len(self._connections)} of {self._count} came in {self.timeout_seconds:g} s"
            raise WorkerLostError(_ANOTHER, reason) from error


class PeerWriter:
    """A rank that is not rank 0."""

    def __init__(self, name: str, timeout_seconds: float) -> None:
        """Helps `PeerWriters` of that name."""
        self._name, self._timeout_seconds = name, timeout_seconds
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._publisher: int | None = None
        """Rank 0's process, once connected."""
        self._mapped: dict[int, list[NDArray[np.uint8]]] = {}

    def write(self, version: WeightVersion, plan: WritePlan) -> None:
        """This rank's part of a version, once rank 0 says where to.

        Raises ConnectionError if rank 0 is not there or gone or publishes another version, PermissionError if
        it is another user's, WorkerLostError if it says nothing.
        """
        if self._connection.fileno() < 0:
            raise ConnectionError("weights: rank 0 was let go when a publish failed")
        try:
            self._write(version, plan)
        except BaseException:
            self.close()  # rank 0 is not left waiting
            raise

    def close(self) -> None:
        """Let rank 0 go, and its memory."""
        self._connection.close()
        self._mapped.clear()

    def _write(self, version: WeightVersion, plan: WritePlan) -> None:
        if self._publisher is None:
            self._connection.connect(_abstract(self._name))
            self._publisher = _require_same_user(self._connection)
        order = _ORDER.unpack(_receive(self._connection, _ORDER.size, self._timeout_seconds))
        published, number, descriptor, blocks = order
        if published != version:
            raise ConnectionError(f"weights: got version {published} of rank 0, expected {version}")
        plan.write(self._blocks(number, descriptor, blocks, plan.bucket_bytes))
        self._connection.send(_DONE.pack(version))

    def _blocks(self, number: int, descriptor: int, count: int, size: int) -> list[NDArray[np.uint8]]:
        blocks = self._mapped.pop(number, [])
        if len(blocks) != count:
            blocks = map_blocks(Path(f"/proc/{self._publisher}/fd/{descriptor}"), count, size)
        self._mapped[number] = blocks
        for oldest in list(self._mapped)[:-KEPT]:
            del self._mapped[oldest]
        return blocks


def _abstract(name: str) -> str:
    return f"\0orchestrator-weights-{name}"


def _require_same_user(connection: socket.socket) -> int:
    """The process at the other end. Raises PermissionError if it is another user's."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, user, _ = _CREDENTIALS.unpack(credentials)
    if user != os.getuid():
        with closing(connection):
            raise PermissionError(f"weights: process {process} of user {user} is not a rank of this learner")
    return process


def _receive(connection: socket.socket, size: int, timeout_seconds: float) -> bytes:
    """The next message, of `size` bytes. Not asked for again and again: ranks that do keep the others from
    the cores that they need to answer.
    """
    connection.settimeout(timeout_seconds)
    try:
        message = connection.recv(size)
    except TimeoutError as error:
        reason = f"it said nothing for {timeout_seconds:g} s in a publish"
        raise WorkerLostError(_ANOTHER, reason) from error
    if len(message) != size:
        raise ConnectionError(f"weights: {_ANOTHER} is gone")
    return message
