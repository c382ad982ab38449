"""Loads published weights into the model of an engine. All versions of a model have the same layout, so the
destination of each slice is determined only once; loading a version then takes one memmove per slice.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Self

from orchestrator.training.records import WeightVersion
from orchestrator.training.rollouts.engine import WeightTarget
from orchestrator.training.tensors.buckets import Bucket, Move, Piece, dtype_named, is_plain, unflatten


@dataclass(frozen=True, slots=True)
class _BucketMoves:
    """The slices of a bucket with their destinations in the model's memory."""

    pieces: tuple[Piece, ...]
    moves: tuple[Move, ...]

    @classmethod
    def of(cls, pieces: tuple[Piece, ...], target: WeightTarget) -> Self | None:
        """Find the destinations. None if a slice has none, or one of another
        shape, dtype or kind of memory.
        """
        moves: list[Move] = []
        for piece in pieces:
            place, dtype = target.weight_storage(piece.name), dtype_named(piece.dtype)
            if place is None or place.dtype != dtype or place.shape != piece.shape or not is_plain(place):
                return None
            size = dtype.itemsize
            moves.append(Move(piece.offset, place.data_ptr, piece.start * size, piece.length * size))
        return cls(pieces, tuple(moves))

    def load(self, bucket: Bucket) -> None:
        """Copy each slice to its destination."""
        address, memmove = bucket.data.ctypes.data, ctypes.memmove
        for offset, place, first, size in self.moves:
            memmove(place() + first, address + offset, size)


class WeightLoader:
    """Loads published weights into one model, in place."""

    def __init__(self, target: WeightTarget) -> None:
        self._target = target
        self._known: tuple[_BucketMoves, ...] = ()

    def load(self, version: WeightVersion, buckets: Iterable[Bucket]) -> None:
        """Replace all weights by those in `buckets`, each of which is valid until the next one is requested.

        Raises ValueError if they do not match the model's weights. The model then holds a
        mixture of two versions.
        """
        arriving = iter(buckets)
        first = next(arriving, None)
        arriving = arriving if first is None else chain((first,), arriving)
        if first is not None and self._known and self._known[0].pieces == first.pieces:
            self._load_as_before(version, arriving)
        else:
            self._load_by_name(version, arriving)

    def _load_as_before(self, version: WeightVersion, buckets: Iterator[Bucket]) -> None:
        loaded = 0
        for known, bucket in zip(self._known, buckets, strict=False):
            if known.pieces != bucket.pieces:
                raise ValueError(f"weights of version {version}: bucket {loaded} has other pieces now")
            known.load(bucket)
            loaded += 1
        if loaded < len(self._known) or next(buckets, None) is not None:
            raise ValueError(f"weights of version {version}: not the {len(self._known)} buckets of before")
        self._target.weights_written(version)

    def _load_by_name(self, version: WeightVersion, buckets: Iterator[Bucket]) -> None:
        seen: list[tuple[Piece, ...]] = []

        def noted() -> Iterator[Bucket]:
            for bucket in buckets:
                seen.append(bucket.pieces)
                yield bucket

        self._known = ()
        self._target.load_weights(version, unflatten(noted(), self._target.weight_storage))
        known = [_BucketMoves.of(pieces, self._target) for pieces in seen]
        self._known = tuple(each for each in known if each is not None)
        if len(self._known) < len(known):
            self._known = ()
