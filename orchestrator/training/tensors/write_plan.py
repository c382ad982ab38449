"""Writes the same tensors into buckets repeatedly. The layout is computed once; each version is then one
memmove per tensor. Ranks on one host can write their own parts into the same memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.training.tensors.buckets import (
    Allocate,
    Bucket,
    Move,
    Piece,
    Placed,
    TensorPart,
    Writing,
    is_plain,
    placements,
)


@dataclass(frozen=True, slots=True)
class BucketPlan:
    """The contents of a bucket, and the copies with which this process writes its part."""

    pieces: tuple[Piece, ...]
    used: int
    """Bytes of the bucket that are sent."""
    moves: tuple[Move, ...]
    copies: tuple[tuple[int, Tensor, int, int], ...]
    """Copies of tensors that are not plain host memory: byte in the bucket, tensor,
    first element, number of elements.
    """

    @classmethod
    def of(cls, placed: Sequence[Placed]) -> BucketPlan:
        """Build the plan from all placements of one bucket."""
        moves: list[Move] = []
        copies: list[tuple[int, Tensor, int, int]] = []
        for each in placed:
            data = each.part.data
            if data.is_meta:
                continue
            base, size = data if each.part.base is None else each.part.base, data.element_size()
            first = (data.data_ptr() - base.data_ptr()) // size + each.first
            if is_plain(base):
                moves.append(Move(each.offset, base.data_ptr, first * size, each.length * size))
            else:
                copies.append((each.offset, base, first, each.length))
        filling = placed[0].filling
        return cls(tuple(filling.pieces), filling.used, tuple(moves), tuple(copies))

    def write(self, data: NDArray[np.uint8]) -> None:
        """Write this process's part of the bucket into its memory."""
        if self.moves:
            address, memmove = data.ctypes.data, ctypes.memmove
            for offset, source, first, size in self.moves:
                memmove(address + offset, source() + first, size)
        if self.copies:
            writing = Writing(data)
            for copy in self.copies:
                writing.write(*copy)


class WritePlan:
    """The buckets, and the bytes that this process writes into them. The
    buckets are the same on every rank.
    """

    def __init__(self, parts: Iterable[TensorPart], bucket_bytes: int) -> None:
        """`parts` are ordered as for `flatten`. Parts on the device "meta" are written by other ranks. The
        tensors must stay the same objects as long as the plan is used; their contents may change.

        Raises ValueError if `bucket_bytes` is smaller than one aligned element (64 bytes).
        """
        self.bucket_bytes = bucket_bytes
        buckets = groupby(placements(parts, bucket_bytes), lambda placed: placed.filling)
        self.buckets = tuple(BucketPlan.of(list(placed)) for _, placed in buckets)
        self.contents = [(bucket.pieces, bucket.used) for bucket in self.buckets]
        """For each bucket: its pieces, and how many of its bytes are sent."""

    def fill(self, allocate: Allocate) -> Iterator[Bucket]:
        """Write and yield the buckets, if this process writes all of their bytes."""
        for bucket in self.buckets:
            data = allocate(self.bucket_bytes)
            bucket.write(data)
            yield Bucket(bucket.pieces, data[: bucket.used])

    def write(self, memory: Sequence[NDArray[np.uint8]]) -> None:
        """Write this process's part of each bucket into its memory."""
        for bucket, data in zip(self.buckets, memory, strict=True):
            bucket.write(data)
