"""Learner ranks on one host write a version together, each its own part, into a segment of rank 0:

    rank 0    picks a segment -> sends its number -> writes its part -> waits for all -> publishes
    peers                        receive the number -> write their part -> report that they are done

They communicate over a Unix socket in Linux's abstract namespace: it leaves no file behind, and the death of
a process closes its connection immediately. Both sides check that the other process runs as the same user
(the kernel guarantees this), and a peer must send the run's secret first. Rank 0 drops any other connection
and continues to wait.
"""

from __future__ import annotations

import hmac
import logging
import os
import socket
import struct
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import WorkerLostError
from orchestrator.training.records import WeightVersion
from orchestrator.training.tensors.write_plan import WritePlan
from orchestrator.training.weights.rendezvous import Rendezvous
from orchestrator.training.weights.segments import Segment, map_blocks

logger = logging.getLogger(__name__)

KEPT = 2
"""Segments that a peer keeps mapped: as many as rank 0 writes in turn."""

_ORDER = struct.Struct("4q16s")
"""Version; number of the segment, its file descriptor in rank 0's process, number of blocks, its claim."""
_DONE = struct.Struct("q")
"""Version."""
_PEER = "another rank of the learner"
_CREDENTIALS = struct.Struct("3i")
"""SO_PEERCRED: process, user, group."""
_HANDSHAKE_SECONDS = 5.0
"""How long a new connection may take to send the secret; a peer sends it as soon as it is connected."""


class PeerWriters:
    """Rank 0's connections to the other ranks."""

    def __init__(self, rendezvous: Rendezvous) -> None:
        """Listen for the other ranks. Raises OSError if the name is taken."""
        self._secret, self._count = rendezvous.secret, rendezvous.ranks - 1
        self.timeout_seconds = rendezvous.timeout_seconds
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._listener.bind(_abstract(rendezvous.name))
        except OSError:
            self._listener.close()
            raise
        self._listener.listen()
        self._connections: list[socket.socket] = []
        self._closed = False

    def start(self, version: WeightVersion, segment: Segment, blocks: int) -> None:
        """Tell the peers to write. The first call waits until all of them have connected.

        Raises WorkerLostError if they do not, ConnectionError if one of them is gone.
        """
        if self._closed:
            raise ConnectionError(
                "weights: peers were disconnected after a failed publish; rebuild the learner"
            )
        if len(self._connections) < self._count:
            self._accept_all()
        order = _ORDER.pack(version, segment.number, segment.descriptor, blocks, segment.claim)
        for connection in self._connections:
            connection.send(order)

    def wait(self, version: WeightVersion) -> None:
        """Wait until all peers are done. Raises ConnectionError if one is gone, WorkerLostError
        if one is silent.
        """
        for connection in self._connections:
            (done,) = _DONE.unpack(_receive(connection, _DONE.size, self.timeout_seconds))
            if done != version:
                raise ConnectionError(f"weights: a rank wrote version {done} instead of {version}")

    def close(self) -> None:
        """Disconnect the peers."""
        self._closed = True
        for connection in (*self._connections, self._listener):
            connection.close()

    def _accept_all(self) -> None:
        deadline = time.monotonic() + self.timeout_seconds
        while len(self._connections) < self._count:
            self._listener.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                connection = self._listener.accept()[0]
            except TimeoutError as error:
                joined = f"{len(self._connections)} of {self._count} connected"
                raise WorkerLostError(_PEER, f"{joined} within {self.timeout_seconds:g} s") from error
            if self._is_peer(connection):
                self._connections.append(connection)
            else:
                connection.close()

    def _is_peer(self, connection: socket.socket) -> bool:
        process, user = _credentials(connection)
        if user != os.getuid():
            logger.warning("weights: rejected process %d of user %d", process, user)
            return False
        connection.settimeout(min(_HANDSHAKE_SECONDS, self.timeout_seconds))
        try:
            secret = connection.recv(len(self._secret) + 1)
        except OSError:  # it closed the connection or sent nothing
            secret = b""
        if not hmac.compare_digest(secret, self._secret):
            logger.warning("weights: rejected process %d, which does not know the run's secret", process)
            return False
        return True


class PeerWriter:
    """The connection of a rank other than 0 to rank 0."""

    def __init__(self, rendezvous: Rendezvous) -> None:
        self._rendezvous = rendezvous
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._publisher: int | None = None
        """Rank 0's process id, once connected."""
        self._mapped: dict[int, list[NDArray[np.uint8]]] = {}

    def write(self, version: WeightVersion, plan: WritePlan) -> None:
        """Wait for rank 0's order, then write this rank's part of the version.

        Raises ConnectionError if rank 0 is missing, gone or publishes another version, PermissionError if the
        name belongs to another user's process, WorkerLostError if rank 0 is silent.
        """
        if self._connection.fileno() < 0:
            raise ConnectionError(
                "weights: rank 0 was disconnected after a failed publish; rebuild the learner"
            )
        try:
            self._write(version, plan)
        except BaseException:
            self.close()  # so that rank 0 does not wait for this rank
            raise

    def close(self) -> None:
        """Disconnect from rank 0 and unmap its memory."""
        self._connection.close()
        self._mapped.clear()

    def _write(self, version: WeightVersion, plan: WritePlan) -> None:
        if self._publisher is None:
            self._publisher = self._connect()
        timeout_seconds = self._rendezvous.timeout_seconds
        order = _ORDER.unpack(_receive(self._connection, _ORDER.size, timeout_seconds))
        published, number, descriptor, count, claim = order
        if published != version:
            raise ConnectionError(f"weights: rank 0 publishes version {published}, this rank {version}")
        blocks = self._mapped.pop(number, [])
        if len(blocks) != count:
            path = Path(f"/proc/{self._publisher}/fd/{descriptor}")
            blocks = map_blocks(path, claim, count, plan.bucket_bytes)
        self._keep(number, blocks)
        plan.write(blocks)
        self._connection.send(_DONE.pack(version))

    def _connect(self) -> int:
        """Connect and send the secret; rank 0's process id."""
        self._connection.connect(_abstract(self._rendezvous.name))
        process, user = _credentials(self._connection)
        if user != os.getuid():
            raise PermissionError(f"weights: process {process} of user {user} is not rank 0 of this learner")
        self._connection.send(self._rendezvous.secret)
        return process

    def _keep(self, number: int, blocks: list[NDArray[np.uint8]]) -> None:
        self._mapped[number] = blocks
        for oldest in list(self._mapped)[:-KEPT]:
            del self._mapped[oldest]


def _abstract(name: str) -> str:
    return f"\0orchestrator-weights-{name}"


def _credentials(connection: socket.socket) -> tuple[int, int]:
    """Process and user at the other end, as the kernel recorded them when the socket was opened."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process, user, _ = _CREDENTIALS.unpack(credentials)
    return process, user


def _receive(connection: socket.socket, size: int, timeout_seconds: float) -> bytes:
    """Receive the next message, of `size` bytes. Blocks instead of polling, which would take CPU time from
    the ranks that have to answer.
    """
    connection.settimeout(timeout_seconds)
    try:
        message = connection.recv(size)
    except TimeoutError as error:
        reason = f"no message for {timeout_seconds:g} s while publishing weights"
        raise WorkerLostError(_PEER, reason) from error
    if len(message) != size:
        raise ConnectionError(f"weights: {_PEER} is gone")
    return message
