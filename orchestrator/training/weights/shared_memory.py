"""The weight channel through memory that the processes of one host share. The learner writes a version once,
and workers read it in place.

A version lies in a segment, an anonymous file in memory (memfd_create(2)):

    header      [page]              identity of the version; offset and length of its manifest
    buckets     [count x stride]    flattened straight into the mapping; unused pages cost nothing
    manifest                        which tensors lie where in each bucket (JSON)

Workers open it as /proc/<pid>/fd/<number>. It has no name, so nothing is left behind however processes end:
the kernel frees a segment when the learner and the last reader have closed it. It does not count towards
/dev/shm, which is limited to 64 MiB in many containers.

Segments are reused, normally two of them in turn, because fresh memory costs several times as much as a copy.
flock(2) keeps a segment from being overwritten while it is read: a reader holds a shared lock, a writer an
exclusive one. A writer does not wait for readers; it leaves the segment to them and takes a new one. Locks
end with their process. A reader that comes too late finds another identity in the header, or the lock taken,
and raises WeightsNotFoundError.
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
"""Segments that a writer alternates between, and that a reader keeps mapped."""


class SharedMemoryChannel:
    """A `WeightChannel` for processes of one host and one user that see each other in /proc (Linux). Keeps
    the last two versions, and older ones while they are being read.
    """

    def __init__(self) -> None:
        self._segments: list[Segment] = []
        self._numbers = itertools.count()
        self._latest: WeightVersion | None = None
        self._attached = AttachedSegments(KEPT)

    def publish(self, version: WeightVersion, source: BucketSource) -> SegmentHandle:
        """See `WeightChannel.publish`. Raises OSError if there is not enough memory."""

        def write(segment: Segment) -> Contents:
            places = itertools.count()
            buckets = source(lambda size: segment.block(next(places), size))
            return [(bucket.pieces, bucket.data.nbytes) for bucket in buckets]

        return self._publish(version, write)

    def publish_together(self, version: WeightVersion, plan: WritePlan, peers: PeerWriters) -> SegmentHandle:
        """Like `publish`, but other ranks write their shares of the plan (`PeerWriter.write`).

        Also raises ConnectionError or WorkerLostError if one of them fails. After any error
        the peers are disconnected and the segment is dropped, because a peer may still write to it.
        """

        def write(segment: Segment) -> Contents:
            count = len(plan.buckets)
            segment.block(count - 1, plan.bucket_bytes)
            try:
                peers.start(version, segment, count)
                plan.write(segment.blocks[:count])
                peers.wait(version)
            except BaseException:
                self._segments.remove(segment)
                raise
            return plan.contents

        try:
            return self._publish(version, write)
        except BaseException:
            peers.close()
            raise

    def _publish(self, version: WeightVersion, write: Callable[[Segment], Contents]) -> SegmentHandle:
        require_rising(version, self._latest)
        segment = self._free_segment()
        try:
            segment.begin_write()
            identity = segment.commit(version, write(segment))
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
        """See `WeightChannel.close`. Readers keep the segments that they are reading."""
        for segment in self._segments:
            os.close(segment.descriptor)
        self._segments.clear()
        self._attached.close()

    def _free_segment(self) -> Segment:
        """A locked segment that nobody reads and that does not hold the latest version; a new one
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
