"""Weights through memory that the processes of one host share: written once, by the learner, and read
where they lie.

A version lies in a segment, an anonymous file in memory (memfd_create(2)):

    header      [page]              identity of the version, where its manifest is
    buckets     [count x stride]    flattened straight into the mapping; pages that a bucket
                                    does not use cost nothing
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
import os
from collections.abc import Callable, Generator

from orchestrator.training.records import WeightVersion
from orchestrator.training.tensors.buckets import Bucket
from orchestrator.training.tensors.write_plan import WritePlan
from orchestrator.training.weights.channel import BucketSource, require_rising
from orchestrator.training.weights.segment_reader import AttachedSegments, SegmentHandle
from orchestrator.training.weights.segments import Contents, Segment, lock
from orchestrator.training.weights.writers import PeerWriters

KEPT = 2
"""Segments that a writer writes in turn, and that a reader keeps mapped."""


class SharedMemoryChannel:
    """A `WeightChannel` for processes of one host, and one user, that see each other in /proc (Linux). Keeps
    the last two versions, and older ones as long as somebody reads them.
    """

    def __init__(self) -> None:
        self._segments: list[Segment] = []
        self._numbers = itertools.count()
        self._latest: WeightVersion | None = None
        self._attached = AttachedSegments(KEPT)

    def publish(self, version: WeightVersion, source: BucketSource) -> SegmentHandle:
        """See `WeightChannel.publish`. Raises OSError if there is not memory enough."""

        def write(segment: Segment) -> Contents:
            places = itertools.count()
            buckets = source(lambda size: segment.block(next(places), size))
            return [(bucket.pieces, bucket.data.nbytes) for bucket in buckets]

        return self._publish(version, write)

    def publish_together(
        self, version: WeightVersion, plan: WritePlan, helpers: PeerWriters
    ) -> SegmentHandle:
        """Like `publish`, but other ranks write their shares of the plan (`PeerWriter.write`).

        Also raises ConnectionError, PermissionError or WorkerLostError if one of them fails. After any error
        the peers are disconnected and the segment is dropped, because a peer may still write to it.
        """

        def write(segment: Segment) -> Contents:
            count = len(plan.buckets)
            segment.block(count - 1, plan.bucket_bytes)
            try:
                helpers.start(version, segment, count)
                plan.write(segment.blocks[:count])
                helpers.wait(version)
            except BaseException:
                self._segments.remove(segment)
                raise
            return plan.contents

        try:
            return self._publish(version, write)
        except BaseException:
            helpers.close()
            raise

    def _publish(self, version: WeightVersion, write: Callable[[Segment], Contents]) -> SegmentHandle:
        require_rising(version, self._latest)
        segment = self._free_segment()
        try:
            segment.open()
            identity = segment.seal(version, write(segment))
        finally:
            fcntl.flock(segment.descriptor, fcntl.LOCK_UN)
            if segment not in self._segments:
                os.close(segment.descriptor)
        self._latest = version
        return SegmentHandle(version, os.getpid(), segment.descriptor, identity)

    def pull(self, handle: SegmentHandle) -> Generator[Bucket]:
        """See `WeightChannel.pull`. The buckets are read-only."""
        attached = self._attached.take(handle)
        try:
            yield from attached.buckets()
        finally:
            self._attached.give_back(handle, attached)

    def close(self) -> None:
        """See `WeightChannel.close`. Readers under way keep what they read."""
        for segment in self._segments:
            os.close(segment.descriptor)
        self._segments.clear()
        self._attached.close()

    def _free_segment(self) -> Segment:
        """One that nobody reads and that does not hold the latest version, locked; a new one
        if there is none.
        """
        old = [
            segment for segment in self._segments if self._latest is None or segment.version != self._latest
        ]
        for segment in old:
            if lock(segment.descriptor, fcntl.LOCK_EX):
                return segment
            self._segments.remove(segment)
            os.close(segment.descriptor)
        segment = Segment.fresh(next(self._numbers))
        fcntl.flock(segment.descriptor, fcntl.LOCK_EX)
        self._segments.append(segment)
        return segment
