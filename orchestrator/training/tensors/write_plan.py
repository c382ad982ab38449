"""Buckets of tensors that lie at the same place for every version: what goes where is found out once, and a
version is then one memmove a tensor. Ranks of one host can write the same memory, a part each.
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
    """A bucket, and what of it this process writes."""

    pieces: tuple[Piece, ...]
    used: int
    """Bytes of it that are sent."""
    moves: tuple[Move, ...]
    copies: tuple[tuple[int, Tensor, int, int], ...]
    """Of tensors that are not plain host memory: byte in the bucket, tensor, first element, elements."""

    @classmethod
    def of(cls, placed: Sequence[Placed]) -> BucketPlan:
        """All of one bucket's placements."""
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
        """This process's part of the bucket, to its memory."""
        if self.moves:
            address, memmove = data.ctypes.data, ctypes.memmove
            for offset, source, first, size in self.moves:
                memmove(address + offset, source() + first, size)
        if self.copies:
            writing = Writing(data)
            for copy in self.copies:
                writing.write(*copy)


class WritePlan:
    """Which bytes of which bucket this process writes. Every rank's plan has the same buckets."""

    def __init__(self, parts: Iterable[TensorPart], bucket_bytes: int) -> None:
        """`parts` in order, as for `flatten`; what is on the device "meta" is another rank's to write. The
        tensors stay what they are as long as the plan is used; their contents may change.

        Raises ValueError if `bucket_bytes` is less than one aligned element needs (64).
        """
        self.bucket_bytes = bucket_bytes
        buckets = groupby(placements(parts, bucket_bytes), lambda placed: placed.filling)
        self.buckets = tuple(BucketPlan.of(list(placed)) for _, placed in buckets)
        self.contents = [(bucket.pieces, bucket.used) for bucket in self.buckets]
        """Of each bucket: its pieces, and how many of its bytes are sent."""

    def fill(self, allocate: Allocate) -> Iterator[Bucket]:
        """The buckets, where this process writes all there is."""
        for bucket in self.buckets:
            data = allocate(self.bucket_bytes)
            bucket.write(data)
            yield Bucket(bucket.pieces, data[: bucket.used])

    def write(self, memory: Sequence[NDArray[np.uint8]]) -> None:
        """This process's part of each bucket, to its memory."""
        for bucket, data in zip(self.buckets, memory, strict=True):
            bucket.write(data)
