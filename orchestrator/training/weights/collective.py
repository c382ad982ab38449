"""Weights over torch.distributed, between any two nodes: gloo from host memory, NCCL between GPUs.

    rank 0    publish: into shared memory of its own (`SharedMemoryChannel`), two versions in turn
              serve:   one thread for each worker that has come
    worker    pull:    OPEN identity -> BUCKET, bytes; NEXT -> BUCKET, bytes; ...; NEXT -> END

A worker takes weights with its next request, so the two that move a version are a pair (`pairs.py`), made
when the worker first comes. Nobody waits for all workers: a worker that dies ends one thread of rank 0; one
that was restarted comes as a new pair; a learner that was rebuilt has another address in its handles, and
workers leave the old one. What a version is, how long it lives, and that one that is being read is never
overwritten, is shared memory's doing: a serving thread is a reader like any other.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import pickle
import socket
import struct
import threading
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.training.records import WeightVersion
from orchestrator.training.tensors.buckets import Bucket, new_bytes
from orchestrator.training.weights.channel import BucketSource, WeightsNotFoundError
from orchestrator.training.weights.config import Backend
from orchestrator.training.weights.pairs import (
    ControlConnection,
    MessageType,
    Pair,
    family_of,
    host_store,
    join,
)
from orchestrator.training.weights.shared_memory import KEPT, SegmentHandle, SharedMemoryChannel

logger = logging.getLogger(__name__)

_WELCOME = struct.Struct("!QH")
"""Number of the pair, port of the store."""
THREAD_NAME = "weights"
"""How the names of the publisher's threads begin."""


@dataclass(frozen=True, slots=True)
class CollectiveHandle:
    """What a worker anywhere finds a version by. Who does not know `identity` gets nothing."""

    version: WeightVersion
    host: str
    port: int
    identity: bytes


class CollectiveChannel:
    """A `WeightChannel` between any nodes that reach each other by TCP (and, with NCCL, between their GPUs).

    `host` is the address of this process's node: a publisher listens there. Neither side waits longer than
    `timeout_seconds` for one step of the other: to accept, to answer, to move one bucket. A worker may take
    as long as it likes between two buckets; it pulls one version at a time.
    """

    def __init__(self, host: str, backend: Backend, timeout_seconds: float) -> None:
        self._host, self._timeout_seconds = host, timeout_seconds
        self._backend: Backend = backend
        self._memory = SharedMemoryChannel()
        self._server: _Server | None = None
        self._client: _Client | None = None

    def publish(self, version: WeightVersion, source: BucketSource) -> CollectiveHandle:
        """See `WeightChannel.publish`."""
        segment = self._memory.publish(version, source)
        if self._server is None:
            self._server = _Server(self._host, self._backend, self._timeout_seconds)
        self._server.offer(segment)
        return CollectiveHandle(version, self._host, self._server.port, segment.identity)

    def pull(self, handle: CollectiveHandle) -> Generator[Bucket]:
        """See `WeightChannel.pull`. Raises WeightsNotFoundError between two buckets too, if the
        publisher is lost there.
        """
        try:
            yield from self._opened(handle).buckets(handle.version)
        except OSError as error:
            self._leave()
            where = f"its publisher at {handle.host}:{handle.port} is lost"
            raise WeightsNotFoundError(handle.version, f"{where}: {error}") from error

    def close(self) -> None:
        """See `WeightChannel.close`. The publisher's threads have ended, unless one is moving a bucket: that
        one ends with it.
        """
        self._leave()
        if self._server is not None:
            self._server.close()
            self._server = None
        self._memory.close()

    def _opened(self, handle: CollectiveHandle) -> _Client:
        """The pair with the publisher, at the beginning of a version. Raises OSError."""
        client = self._client
        if client is not None and client.address == (handle.host, handle.port):
            try:
                client.open(handle)
            except ConnectionError:  # it was lost while there was nothing to pull
                logger.info("joining the publisher at %s:%d again", handle.host, handle.port)
            else:
                return client
        self._leave()
        self._client = client = _Client(handle.host, handle.port, self._backend, self._timeout_seconds)
        client.open(handle)
        return client

    def _leave(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


class _Client:
    """The worker's side of a pair. Everything raises OSError if the publisher is lost."""

    def __init__(self, host: str, port: int, backend: Backend, timeout_seconds: float) -> None:
        self.address = (host, port)
        line = ControlConnection(socket.create_connection((host, port), timeout_seconds), timeout_seconds)
        try:
            _, content = line.receive()
            number, store_port = _WELCOME.unpack(content)
            self._pair = join(line, backend, (host, store_port), number, 1, timeout_seconds)
        except BaseException:
            line.close()
            raise
        self._scratch = new_bytes(0)
        self._answer = (MessageType.END, b"")

    def open(self, handle: CollectiveHandle) -> None:
        """Ask for a version."""
        self._pair.line.send(MessageType.OPEN, handle.identity)
        self._answer = self._pair.line.receive()

    def buckets(self, version: WeightVersion) -> Generator[Bucket]:
        """What was asked for. Raises WeightsNotFoundError if the publisher does not have it."""
        word, content = self._answer
        while word is MessageType.BUCKET:
            pieces, size = pickle.loads(content)
            data = self._memory(size)
            if size:
                self._pair.receive(data)
            try:
                yield Bucket(pieces, data)
            except GeneratorExit:
                with contextlib.suppress(OSError):  # a loss is found when the next version is opened
                    self._pair.line.send(MessageType.ENOUGH)
                raise
            self._pair.line.send(MessageType.NEXT)
            word, content = self._pair.line.receive()
        if word is MessageType.GONE:
            raise WeightsNotFoundError(version, content.decode())

    def close(self) -> None:
        """Leave the publisher."""
        self._pair.close()

    def _memory(self, size: int) -> NDArray[np.uint8]:
        """One bucket's memory, used again for each."""
        if self._scratch.nbytes < size:
            self._scratch = new_bytes(0)  # before there is a second one
            self._scratch = new_bytes(size)
        return self._scratch[:size]


class _Server:
    """The publisher's side of all its pairs: listens, and serves each worker in a thread of its own."""

    def __init__(self, host: str, backend: Backend, timeout_seconds: float) -> None:
        self._host, self._timeout_seconds = host, timeout_seconds
        self._backend: Backend = backend
        self._store = host_store(host, timeout_seconds)
        self._listener = socket.create_server((host, 0), family=family_of(host))
        self.port: int = self._listener.getsockname()[1]
        self._offered: dict[bytes, SegmentHandle] = {}
        self._lines: dict[threading.Thread, ControlConnection] = {}
        self._changing = threading.Lock()
        self._closed = False
        threading.Thread(target=self._accept, name=f"{THREAD_NAME}-listener", daemon=True).start()

    def offer(self, segment: SegmentHandle) -> None:
        """A version that may be asked for from now on; so may the one before."""
        kept = [*self._offered.values(), segment][-KEPT:]
        self._offered = {kept_segment.identity: kept_segment for kept_segment in kept}

    def close(self) -> None:
        """Accept nobody any more and end all threads."""
        with self._changing:
            self._closed = True
            lines = dict(self._lines)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the one that accepts
        self._listener.close()
        for line in lines.values():
            line.close()
        for thread in lines:
            thread.join(self._timeout_seconds)

    def _accept(self) -> None:
        for number in itertools.count(1):
            try:
                connection, address = self._listener.accept()
            except OSError:  # closed
                return
            line, peer = ControlConnection(connection, self._timeout_seconds), f"{address[0]}:{address[1]}"
            name = f"{THREAD_NAME}-{number}"
            thread = threading.Thread(target=self._serve, args=(line, number, peer), name=name, daemon=True)
            with self._changing:
                if self._closed:
                    line.close()
                    return
                self._lines[thread] = line
                thread.start()

    def _serve(self, line: ControlConnection, number: int, peer: str) -> None:
        """All that one worker asks for, until it leaves or is lost."""
        reader, store = SharedMemoryChannel(), (self._host, self._store.port)
        try:
            line.send(MessageType.WELCOME, _WELCOME.pack(number, self._store.port))
            joined = join(line, self._backend, store, number, 0, self._timeout_seconds)
            with contextlib.closing(joined) as pair:
                logger.info("serves weights to the worker at %s", peer)
                while True:
                    _, identity = line.wait()
                    self._serve_version(identity, pair, reader)
        except OSError as error:
            logger.info("the worker at %s is gone: %s", peer, error)
        finally:
            line.close()
            reader.close()
            with self._changing:
                del self._lines[threading.current_thread()]

    def _serve_version(self, identity: bytes, pair: Pair, reader: SharedMemoryChannel) -> None:
        """One version, until the worker has it or wants no more of it."""
        segment = self._offered.get(identity)
        if segment is None:
            pair.line.send(MessageType.GONE, b"newer versions pushed it out")
            return
        try:
            with contextlib.closing(reader.pull(segment)) as buckets:
                for bucket in buckets:
                    size = bucket.data.nbytes
                    pair.line.send(MessageType.BUCKET, pickle.dumps((bucket.pieces, size)))
                    if size:
                        pair.send(bucket.data)
                    word, _ = pair.line.wait()
                    if word is not MessageType.NEXT:
                        return
        except WeightsNotFoundError as error:
            pair.line.send(MessageType.GONE, error.reason.encode())
            return
        pair.line.send(MessageType.END)
