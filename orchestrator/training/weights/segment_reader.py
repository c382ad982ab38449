"""The reading side of the shared-memory channel: segments of other processes, found, locked and mapped."""

from __future__ import annotations

import fcntl
import mmap
import os
import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.training.records import WeightVersion
from orchestrator.training.tensors.buckets import Bucket, Piece
from orchestrator.training.weights.channel import WeightsNotFoundError
from orchestrator.training.weights.segments import HEADER, lock


@dataclass(frozen=True, slots=True)
class SegmentHandle:
    """What a worker on the same host finds a version by."""

    version: WeightVersion
    process: int
    descriptor: int
    identity: bytes


class AttachedSegment:
    """A segment that this process has opened and mapped."""

    def __init__(self, path: str) -> None:
        """Raises OSError if there is none."""
        # Without waiting: by now the number may stand for a pipe.
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self._mapping: mmap.mmap | None = None
        self._digest = b""
        self._buckets: Sequence[Bucket] = ()

    def holds(self, identity: bytes) -> bool:
        """That version is in it. The lock is held."""
        try:
            return self._header()[0] == identity
        except (OSError, ValueError, struct.error):  # not a segment, too short for one, not even a file
            return False

    def buckets(self) -> Sequence[Bucket]:
        """Of the version that it `holds`, read-only. The lock is held."""
        _, digest, start, length = self._header()
        if digest != self._digest:  # versions of one model differ in nothing but the bytes
            mapping = self._mapped(start + length)
            self._buckets = [
                Bucket(tuple(map(Piece._make, pieces)), np.frombuffer(mapping, np.uint8, used, offset))
                for pieces, offset, used in pickle.loads(mapping[start : start + length])
            ]
            self._digest = digest
        return self._buckets

    def close(self) -> None:
        """Let go of it, and of its lock, which a mapping that is still read from would hold."""
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        self._buckets, self._mapping = (), None
        os.close(self.descriptor)

    def _header(self) -> tuple[bytes, bytes, int, int]:
        """Identity, digest of the manifest, its offset and length."""
        return HEADER.unpack(self._mapped(HEADER.size)[: HEADER.size])

    def _mapped(self, size: int) -> mmap.mmap:
        """All of it, `size` bytes at least."""
        if self._mapping is None or len(self._mapping) < size:
            whole = os.fstat(self.descriptor).st_size
            self._mapping = mmap.mmap(self.descriptor, whole, mmap.MAP_SHARED, mmap.PROT_READ)
        return self._mapping


class AttachedSegments:
    """Those that this process reads. The last `kept` stay open and mapped: to find and map one anew costs
    more than to copy a small model from it.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._idle: dict[tuple[int, int], AttachedSegment] = {}
        self._closed = False

    def take(self, handle: SegmentHandle) -> AttachedSegment:
        """The segment with the handle's version, locked against writers; nobody else is given it until it
        comes back. Raises WeightsNotFoundError.
        """
        attached = self._idle.pop((handle.process, handle.descriptor), None)
        if attached is None:
            return self._find(handle)
        locked = _lives(handle.process) and lock(attached.descriptor, fcntl.LOCK_SH)
        if locked and attached.holds(handle.identity):
            return attached
        attached.close()  # the number may stand for another segment by now
        return self._find(handle)

    def give_back(self, handle: SegmentHandle, attached: AttachedSegment) -> None:
        """It is read."""
        if self._closed:
            attached.close()
            return
        fcntl.flock(attached.descriptor, fcntl.LOCK_UN)
        before = self._idle.pop((handle.process, handle.descriptor), None)
        self._idle[handle.process, handle.descriptor] = attached
        if before is not None:
            before.close()
        for oldest in list(self._idle)[: -self._kept]:
            self._idle.pop(oldest).close()

    def close(self) -> None:
        """Let go of all, of what is read when it comes back."""
        self._closed = True
        self._clear()

    def _clear(self) -> None:
        for attached in self._idle.values():
            attached.close()
        self._idle.clear()

    def _find(self, handle: SegmentHandle) -> AttachedSegment:
        path = f"/proc/{handle.process}/fd/{handle.descriptor}"
        try:
            attached = AttachedSegment(path)
        except OSError as error:
            self._clear()  # the publisher is gone: what it left must not be kept in memory
            raise WeightsNotFoundError(handle.version, f"{path}: {error.strerror}") from error
        if not lock(attached.descriptor, fcntl.LOCK_SH):
            attached.close()
            raise WeightsNotFoundError(handle.version, "a newer version is being written over it")
        if not attached.holds(handle.identity):
            attached.close()
            raise WeightsNotFoundError(handle.version, "a newer version was written over it")
        return attached


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
