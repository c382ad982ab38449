"""Memory that a host's processes share, block by block: the writing side of the shared-memory channel."""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import pickle
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.training.records import WeightVersion
from orchestrator.training.tensors.buckets import Piece
from orchestrator.training.weights.channel import new_identity

PAGE = mmap.PAGESIZE
HEADER = struct.Struct("16s16sQQ")
"""Identity of the version; digest, offset and length of its manifest."""

Manifest = list[tuple[tuple[Any, ...], int, int]]
"""Of each bucket: its pieces, its offset in the segment, its length in bytes. Plain tuples for pieces pickle
several times faster.
"""

Contents = list[tuple[tuple[Piece, ...], int]]
"""Of each bucket: its pieces, its length in bytes."""


@dataclass(slots=True, eq=False)
class Segment:
    """A segment in the process that publishes. Its mappings are kept, so that the next version that is
    written here finds its pages in place.
    """

    number: int
    """Of this process's segments; a descriptor may stand for another one later."""
    descriptor: int
    header: mmap.mmap
    version: WeightVersion | None = None
    blocks: list[NDArray[np.uint8]] = field(default_factory=list)
    _contents: Contents = field(default_factory=list)
    _digest: bytes = b""
    _end: int = 0
    _length: int = 0

    @classmethod
    def fresh(cls, number: int) -> Segment:
        """Without a block. Raises OSError if there is not memory enough."""
        descriptor = os.memfd_create("orchestrator-weights")
        os.ftruncate(descriptor, PAGE)
        return cls(number, descriptor, mmap.mmap(descriptor, PAGE))

    def block(self, index: int, size: int) -> NDArray[np.uint8]:
        """Block `index`; the segment grows if it has to. `size` is the same every time. Raises OSError if
        there is not memory enough.
        """
        if index >= len(self.blocks):
            # Doubled each time: a mapping holds a file descriptor, and a page costs nothing until it is used.
            stride, have = whole_pages(size), len(self.blocks)
            more = max(1, have, index + 1 - have)
            start = PAGE + have * stride
            os.ftruncate(self.descriptor, start + more * stride)
            self._length = 0  # where the manifest was, there is a block now
            mapping = mmap.mmap(self.descriptor, more * stride, offset=start)
            self.blocks += [np.frombuffer(mapping, np.uint8, size, number * stride) for number in range(more)]
        return self.blocks[index]

    def open(self) -> None:
        """Take the version away, before its blocks are written over. The caller holds the lock."""
        self.header[: HEADER.size] = bytes(HEADER.size)
        self.version = None

    def seal(self, version: WeightVersion, contents: Contents) -> bytes:
        """Make what was written findable; its identity."""
        if not self._length or contents != self._contents:  # versions of one model differ in nothing here
            self._write_manifest(contents)
        identity = new_identity()
        self.header[: HEADER.size] = HEADER.pack(identity, self._digest, self._end, self._length)
        self.version = version
        return identity

    def _write_manifest(self, contents: Contents) -> None:
        stride = whole_pages(self.blocks[0].nbytes) if self.blocks else 0
        manifest: Manifest = [
            (tuple(map(tuple, pieces)), PAGE + index * stride, length)
            for index, (pieces, length) in enumerate(contents)
        ]
        written = pickle.dumps(manifest)
        self._digest = hashlib.blake2b(written, digest_size=16).digest()
        self._end, self._length = PAGE + len(self.blocks) * stride, len(written)
        if os.fstat(self.descriptor).st_size < self._end + self._length:
            os.ftruncate(self.descriptor, self._end + self._length)
        os.pwrite(self.descriptor, written, self._end)
        self._contents = contents


def map_blocks(path: Path, count: int, size: int) -> list[NDArray[np.uint8]]:
    """The first blocks of another process's segment, to be written to. Raises OSError if it is gone."""
    stride = whole_pages(size)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        mapping = mmap.mmap(descriptor, count * stride, offset=PAGE)
    finally:
        os.close(descriptor)
    return [np.frombuffer(mapping, np.uint8, size, index * stride) for index in range(count)]


def whole_pages(size: int) -> int:
    """`size` rounded up."""
    return -(-size // PAGE) * PAGE


def lock(descriptor: int, kind: int) -> bool:
    """Without waiting: False if somebody holds a lock against it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
