"""The writing side of the shared-memory channel: memory segments, made of blocks of equal size."""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.training.records import WeightVersion
from orchestrator.training.tensors.buckets import Bucket, Piece
from orchestrator.training.weights.channel import new_identity

PAGE = mmap.PAGESIZE
HEADER = struct.Struct("16s16sQQ")
"""Identity of the version; digest, offset and length of its manifest."""

Contents = list[tuple[tuple[Piece, ...], int]]
"""For each bucket: its pieces and its length in bytes."""


@dataclass(slots=True, eq=False)
class Segment:
    """A segment in the publisher's process. Its mappings are kept, so that the next version written to it
    finds its pages in place.
    """

    number: int
    """Counts this process's segments. A file descriptor may be reused for another segment; a number is not.
    """
    descriptor: int
    header: mmap.mmap
    version: WeightVersion | None = None
    claim: bytes = b""
    """Stands in the header, in place of an identity, while a version is being written."""
    blocks: list[NDArray[np.uint8]] = field(default_factory=list)
    _contents: Contents = field(default_factory=list)
    _digest: bytes = b""
    _end: int = 0
    _length: int = 0

    @classmethod
    def fresh(cls, number: int) -> Segment:
        """A segment without blocks. Raises OSError if there is not enough memory."""
        descriptor = os.memfd_create("orchestrator-weights")
        os.ftruncate(descriptor, PAGE)
        return cls(number, descriptor, mmap.mmap(descriptor, PAGE))

    def block(self, index: int, size: int) -> NDArray[np.uint8]:
        """Block `index`; grows the segment if necessary. `size` is the same in every call.

        Raises OSError if there is not enough memory.
        """
        if index >= len(self.blocks):
            # Double the size each time: every mapping costs a file descriptor, while a page costs nothing
            # until it is used.
            stride, have = whole_pages(size), len(self.blocks)
            more = max(1, have, index + 1 - have)
            start = PAGE + have * stride
            os.ftruncate(self.descriptor, start + more * stride)
            self._length = 0  # a block overwrites the manifest
            mapping = mmap.mmap(self.descriptor, more * stride, offset=start)
            self.blocks += [np.frombuffer(mapping, np.uint8, size, number * stride) for number in range(more)]
        return self.blocks[index]

    def begin_write(self) -> None:
        """Invalidate the version in this segment before its blocks are overwritten. The caller
        holds the lock.
        """
        self.claim = new_identity()
        self.header[: HEADER.size] = HEADER.pack(self.claim, b"", 0, 0)
        self.version = None

    def commit(self, version: WeightVersion, contents: Contents) -> bytes:
        """Make the written blocks visible as `version`; returns the identity of this publish."""
        if (
            not self._length or contents != self._contents
        ):  # only the bytes differ between versions of a model
            self._write_manifest(contents)
        identity = new_identity()
        self.header[: HEADER.size] = HEADER.pack(identity, self._digest, self._end, self._length)
        self.version = version
        return identity

    def _write_manifest(self, contents: Contents) -> None:
        stride = whole_pages(self.blocks[0].nbytes) if self.blocks else 0
        manifest = [
            (pieces, PAGE + index * stride, length) for index, (pieces, length) in enumerate(contents)
        ]
        written = json.dumps(manifest, separators=(",", ":")).encode()
        self._digest = hashlib.blake2b(written, digest_size=16).digest()
        self._end, self._length = PAGE + len(self.blocks) * stride, len(written)
        if os.fstat(self.descriptor).st_size < self._end + self._length:
            os.ftruncate(self.descriptor, self._end + self._length)
        os.pwrite(self.descriptor, written, self._end)
        self._contents = contents


def read_manifest(manifest: bytes, memory: mmap.mmap) -> list[Bucket]:
    """The buckets that a manifest describes, as views of a segment's `memory`."""
    return [
        Bucket(
            tuple(Piece(name, tuple(shape), *rest) for name, shape, *rest in pieces),
            np.frombuffer(memory, np.uint8, length, offset),
        )
        for pieces, offset, length in json.loads(manifest)
    ]


def map_blocks(path: Path, claim: bytes, count: int, size: int) -> list[NDArray[np.uint8]]:
    """Map the first blocks of another process's segment for writing. Raises OSError if it is gone.

    A descriptor may have been reused for another segment by now, so the `claim` is compared with the header
    of the segment that was opened.
    """
    stride = whole_pages(size)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.pread(descriptor, len(claim), 0) != claim:
            raise ConnectionError("weights: rank 0 gave up the segment that this rank was to write to")
        mapping = mmap.mmap(descriptor, count * stride, offset=PAGE)
    finally:
        os.close(descriptor)
    return [np.frombuffer(mapping, np.uint8, size, index * stride) for index in range(count)]


def whole_pages(size: int) -> int:
    """`size` rounded up to a multiple of the page size."""
    return -(-size // PAGE) * PAGE


def lock(descriptor: int, kind: int) -> bool:
    """Try to lock without waiting. Returns False if another process holds a conflicting lock."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
