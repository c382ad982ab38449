"""The reading side of the shared-memory channel: finds, locks and maps segments of other processes."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.training.records import WeightVersion
from orchestrator.training.tensors.buckets import Bucket
from orchestrator.training.weights.channel import WeightsNotFoundError
from orchestrator.training.weights.segments import HEADER, lock, read_manifest


@dataclass(frozen=True, slots=True)
class SegmentHandle:
    """Identifies a version for processes of the same host."""

    version: WeightVersion
    process: int
    descriptor: int
    identity: bytes


class AttachedSegment:
    """A segment that this process has opened and mapped."""

    def __init__(self, path: str) -> None:
        """Raises OSError if there is no such segment."""
        # Non-blocking: by now the descriptor may refer to a pipe.
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self._mapping: mmap.mmap | None = None
        self._digest = b""
        self._buckets: Sequence[Bucket] = ()

    def holds(self, identity: bytes) -> bool:
        """Whether the segment contains that publish. The caller holds the lock."""
        try:
            return self._header()[0] == identity
        except (OSError, ValueError, struct.error):  # not a segment, too short for one, or not even a file
            return False

    def buckets(self) -> Sequence[Bucket]:
        """The buckets of the version, read-only. The caller holds the lock."""
        _, digest, start, length = self._header()
        if digest != self._digest:  # only the bytes differ between versions of a model
            mapping = self._mapped(start + length)
            self._buckets = read_manifest(mapping[start : start + length], mapping)
            self._digest = digest
        return self._buckets

    def close(self) -> None:
        """Unlock and close it. A mapping that is still being read would otherwise keep the lock."""
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        self._buckets, self._mapping = (), None
        os.close(self.descriptor)

    def _header(self) -> tuple[bytes, bytes, int, int]:
        """Identity of the version; digest, offset and length of the manifest."""
        return HEADER.unpack(self._mapped(HEADER.size)[: HEADER.size])

    def _mapped(self, size: int) -> mmap.mmap:
        """A mapping of the whole segment, which is at least `size` bytes long."""
        if self._mapping is None or len(self._mapping) < size:
            whole = os.fstat(self.descriptor).st_size
            self._mapping = mmap.mmap(self.descriptor, whole, mmap.MAP_SHARED, mmap.PROT_READ)
        return self._mapping


class AttachedSegments:
    """The segments that this process reads. The last `kept` stay open and mapped: opening and mapping a
    segment costs more than copying a small model from it.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._idle: dict[tuple[int, int], AttachedSegment] = {}
        self._closed = False

    def take(self, handle: SegmentHandle) -> AttachedSegment:
        """The segment with the handle's version, locked against writers and reserved for the caller until it
        is given back. Raises WeightsNotFoundError.
        """
        attached = self._idle.pop((handle.process, handle.descriptor), None)
        if attached is None:
            return self._open(handle)
        locked = _is_alive(handle.process) and lock(attached.descriptor, fcntl.LOCK_SH)
        if locked and attached.holds(handle.identity):
            return attached
        attached.close()  # the descriptor may refer to another segment by now
        return self._open(handle)

    def give_back(self, handle: SegmentHandle, attached: AttachedSegment) -> None:
        """Unlock a segment after reading."""
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
        """Close all segments; one that is being read is closed when it is given back."""
        self._closed = True
        self._clear()

    def _clear(self) -> None:
        for attached in self._idle.values():
            attached.close()
        self._idle.clear()

    def _open(self, handle: SegmentHandle) -> AttachedSegment:
        path = f"/proc/{handle.process}/fd/{handle.descriptor}"
        try:
            attached = AttachedSegment(path)
        except OSError as error:
            self._clear()  # the publisher is gone: do not keep its other segments in memory
            raise WeightsNotFoundError(handle.version, f"{path}: {error.strerror}") from error
        if not lock(attached.descriptor, fcntl.LOCK_SH):
            attached.close()
            raise WeightsNotFoundError(handle.version, "a newer version is being written over it")
        if not attached.holds(handle.identity):
            attached.close()
            raise WeightsNotFoundError(handle.version, "a newer version was written over it")
        return attached


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
