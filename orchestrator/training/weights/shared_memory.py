"""Weights through memory that the processes of one host share: written once, by the learner, and read where
they lie.

A version lies in a segment, an anonymous file in memory (memfd_create(2)):

    header      [page]              identity of the version, where its manifest is
    buckets     [count x stride]    flattened straight into the mapping; pages that a bucket does not use cost
                                    nothing
    manifest                        what lies where in each bucket

Workers open it as /proc/<pid>/fd/<number>. It has no name, so nothing is left over however processes end: the
kernel frees a segment when the learner and the last reader have let go of it. It does not count against the
size of /dev/shm, which is 64 MiB in a container.

Segments are written in turn, two as a rule, because fresh memory costs several times what a copy does. That a
reader never sees one being overwritten rests on flock(2): a reader holds a shared lock while it reads, a
writer an exclusive one while it writes. A writer does not wait for readers: it leaves the segment to them and
takes a new one. A lock dies with its process. A reader that comes too late finds another identity in the
header, or the lock taken, and is told that the version is gone.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import pickle
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchestrator.training.buckets import Bucket, Piece
from orchestrator.training.records import WeightVersion
from orchestrator.training.weights.channel import (
    BucketSource,
    WeightsNotFoundError,
    require_rising,
)
from orchestrator.training.weights.segments import HEADER, Contents, Segment
from orchestrator.training.weights.writers import Helpers
from orchestrator.training.write_plan import WritePlan

KEPT = 2
"""Segments that a writer writes in turn, and that a reader keeps mapped."""

Manifest = list[tuple[tuple[Piece, ...], int, int]]
"""Of each bucket: its pieces, its offset in the segment, its length in bytes. Written with plain tuples for
pieces, which pickle several times faster.
"""


@dataclass(frozen=True, slots=True)
class SegmentHandle:
    """What a worker on the same host finds a version by."""

    version: WeightVersion
    process: int
    descriptor: int
    identity: bytes


class SharedMemoryChannel:
    """A `WeightChannel` for processes of one host, and one user, that see each other in /proc (Linux). Keeps
    the last two versions, and older ones as long as somebody reads them.
    """

    def __init__(self) -> None:
        self._segments: list[Segment] = []
        self._numbers = itertools.count()
        self._latest: WeightVersion | None = None
        self._mappings = _Mappings()
        self._content, self._manifest = b"", Manifest()

    def publish(self, version: WeightVersion, source: BucketSource) -> SegmentHandle:
        """See `WeightChannel.publish`. Raises OSError if there is not memory enough."""

        def write(segment: Segment) -> Contents:
            places = itertools.count()
            buckets = source(lambda size: segment.block(next(places), size))
            return [(bucket.pieces, bucket.data.nbytes) for bucket in buckets]

        return self._publish(version, write)

    def publish_together(self, version: WeightVersion, plan: WritePlan, helpers: Helpers) -> SegmentHandle:
        """Like `publish`, with other ranks that write their parts of the plan (`Helper.write`). Raises also
        ConnectionError, PermissionError or TimeoutError if one of them does not.
        """

        def write(segment: Segment) -> Contents:
            count = len(plan.buckets)
            segment.block(count - 1, plan.bucket_bytes)
            helpers.start(version, segment, count)
            plan.write(segment.blocks[:count])
            helpers.wait(version)
            return plan.contents

        return self._publish(version, write)

    def _publish(self, version: WeightVersion, write: Callable[[Segment], Contents]) -> SegmentHandle:
        require_rising(version, self._latest)
        segment = self._free_segment()
        try:
            segment.open()
            identity = segment.seal(version, write(segment))
        finally:
            fcntl.flock(segment.descriptor, fcntl.LOCK_UN)
        self._latest = version
        return SegmentHandle(version, os.getpid(), segment.descriptor, identity)

    def pull(self, handle: SegmentHandle) -> Generator[Bucket]:
        """See `WeightChannel.pull`. The buckets are read-only."""
        descriptor = self._open(handle)
        try:
            content = _read_manifest(descriptor, handle)
            if content != self._content:  # versions of one model differ in nothing here
                self._content, self._manifest = content, _manifest(content)
            manifest = self._manifest
            yield from _buckets(self._mappings.of(descriptor), manifest)
        finally:
            os.close(descriptor)  # and with it goes the lock

    def close(self) -> None:
        """See `WeightChannel.close`. Readers under way keep what they read."""
        for segment in self._segments:
            os.close(segment.descriptor)
        self._segments.clear()
        self._mappings.clear()

    def _open(self, handle: SegmentHandle) -> int:
        """The segment, with a shared lock. Raises WeightsNotFoundError."""
        try:
            # Without waiting: by now the number may stand for a pipe.
            descriptor = os.open(_path(handle), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            self._mappings.clear()  # the publisher is gone: what it left must not be kept in memory
            raise WeightsNotFoundError(handle.version, f"{_path(handle)}: {error.strerror}") from error
        if _lock(descriptor, fcntl.LOCK_SH):
            return descriptor
        os.close(descriptor)
        raise WeightsNotFoundError(handle.version, "a newer version is being written over it")

    def _free_segment(self) -> Segment:
        """One that nobody reads and that does not hold the latest version, locked; a new one if there is
        none.
        """
        old = [
            segment for segment in self._segments if self._latest is None or segment.version != self._latest
        ]
        for segment in old:
            if _lock(segment.descriptor, fcntl.LOCK_EX):
                return segment
            self._segments.remove(segment)
            os.close(segment.descriptor)
        segment = Segment.fresh(next(self._numbers))
        fcntl.flock(segment.descriptor, fcntl.LOCK_EX)
        self._segments.append(segment)
        return segment


class _Mappings:
    """The segments that this process reads. The last two stay mapped: to map one anew costs more, in page
    faults, than to copy from it.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], mmap.mmap] = {}

    def of(self, descriptor: int) -> mmap.mmap:
        """The segment that is open as `descriptor`, which the caller has locked. It is opened once more: a
        mapping holds open what it was made of, and with it a lock.
        """
        found = os.fstat(descriptor)
        segment = (found.st_dev, found.st_ino)
        mapping = self._kept.pop(segment, None)
        if mapping is None or len(mapping) < found.st_size:
            unlocked = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                mapping = mmap.mmap(unlocked, found.st_size, mmap.MAP_SHARED, mmap.PROT_READ)
            finally:
                os.close(unlocked)
        self._kept[segment] = mapping
        for oldest in list(self._kept)[:-KEPT]:
            del self._kept[oldest]
        return mapping

    def clear(self) -> None:
        """Unmap all of them."""
        self._kept.clear()


def _path(handle: SegmentHandle) -> Path:
    return Path(f"/proc/{handle.process}/fd/{handle.descriptor}")


def _read_manifest(descriptor: int, handle: SegmentHandle) -> bytes:
    """The manifest, pickled. Raises WeightsNotFoundError if the segment holds something else by now."""
    try:
        header = os.pread(descriptor, HEADER.size, 0)
    except OSError:  # not even a file
        header = b""
    identity, start, length = HEADER.unpack(header) if len(header) == HEADER.size else (b"", 0, 0)
    if identity != handle.identity:
        raise WeightsNotFoundError(handle.version, "a newer version was written over it")
    return os.pread(descriptor, length, start)


def _manifest(content: bytes) -> Manifest:
    return [
        (tuple(map(Piece._make, pieces)), start, length) for pieces, start, length in pickle.loads(content)
    ]


def _buckets(mapping: mmap.mmap, manifest: Manifest) -> Iterator[Bucket]:
    for pieces, start, length in manifest:
        yield Bucket(pieces, np.frombuffer(mapping, dtype=np.uint8, count=length, offset=start))


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
