"""Named tensors as flat byte buckets: how weights leave the learner, cross processes and reach a
rollout worker.

    ("a", [2, 3]), ("b", [4])  --flatten-->  Bucket(pieces=(a, b), data=uint8[...])  --unflatten-->  the same

A bucket is a numpy array of bytes and a manifest, so an object store can hold and map it without copying. No
bucket is larger than `bucket_bytes`: a tensor that does not fit is cut into pieces that follow each other. A
tensor may come in parts, as ranks hold them: the buckets are the same as if it had come whole.

Each side copies once: into the memory that `allocate` gives, and out of it into the memory that `destination`
names. Any torch dtype travels, bfloat16 too: numpy sees bytes.

Names are those of `model.state_dict()` in transformers: what `load_state_dict` takes and
`save_pretrained` starts from.
"""

from __future__ import annotations

import ctypes
import functools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NamedTensor = tuple[str, Tensor]


@dataclass(frozen=True, slots=True)
class TensorPart:
    """Consecutive elements of a tensor of `shape`, in row-major order, from element `start` on."""

    name: str
    shape: tuple[int, ...]
    start: int
    data: Tensor
    base: Tensor | None = None
    """What `data` is a view of, where that is a parameter: it may be given other memory later."""


Allocate = Callable[[int], NDArray[np.uint8]]
"""Memory for the next bucket, of that many bytes. It is asked for after the bucket before was taken."""

Destination = Callable[[str], Tensor | None]
"""Where a weight of that name belongs in the end; None if it can't be written piece by piece."""

ALIGNMENT = 64
"""Bytes: every piece starts at a multiple, so that a view of any dtype is aligned (and on a cache line)."""


class Piece(NamedTuple):
    """`length` elements of one tensor, from element `start` of its row-major order, at byte `offset` of the
    bucket. `shape` and `dtype` are the whole tensor's; `dtype` is torch's name without the prefix
    ("float32", "bfloat16").
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    length: int
    offset: int

    @property
    def whole(self) -> bool:
        """The piece is all of its tensor."""
        return self.length == math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Pieces of tensors, and the bytes that they point into."""

    pieces: tuple[Piece, ...]
    data: NDArray[np.uint8]  # [bytes]


def new_bytes(size: int) -> NDArray[np.uint8]:
    """Fresh memory, not initialised: an `Allocate`."""
    return np.empty(size, dtype=np.uint8)


def nowhere(name: str) -> None:
    """No weight has a place yet: a `Destination`."""


def flatten(
    tensors: Iterable[NamedTensor | TensorPart], bucket_bytes: int, allocate: Allocate = new_bytes
) -> Iterator[Bucket]:
    """Pack tensors, in order, into buckets of at most `bucket_bytes`. Holds one bucket at a time, and nothing
    beside it if the tensors are contiguous; they may lie on a GPU. The parts of a tensor follow each other.

    `allocate` may give the same memory again: then a bucket is valid until the next one is asked for. Raises
    ValueError if `bucket_bytes` is less than one aligned element needs (64).
    """
    for filling, placed in groupby(placements(tensors, bucket_bytes), lambda each: each.filling):
        writing = Writing(allocate(bucket_bytes))
        for each in placed:
            writing.write(each.offset, each.part.data, each.first, each.length)
        yield filling.bucket(writing.data)


class Placed(NamedTuple):
    """`length` elements of `part.data`, from `first` on: at byte `offset` of a bucket."""

    filling: Filling
    part: TensorPart
    first: int
    length: int
    offset: int


def placements(tensors: Iterable[NamedTensor | TensorPart], bucket_bytes: int) -> Iterator[Placed]:
    """What `flatten` copies where, bucket by bucket. Only shapes and dtypes are looked at: tensors may be on
    the device "meta". A bucket is full when the next one's first placement comes. Raises ValueError as
    `flatten` does.
    """
    if bucket_bytes < ALIGNMENT:
        raise ValueError(f"bucket_bytes: got {bucket_bytes}, allowed: {ALIGNMENT} or more")
    filling = Filling(bucket_bytes)
    for item in tensors:
        part = item if isinstance(item, TensorPart) else TensorPart(item[0], tuple(item[1].shape), 0, item[1])
        numel, taken = part.data.numel(), 0
        while taken < numel or taken == 0:
            if filling.pieces and not filling.takes(part, taken):
                filling = Filling(bucket_bytes)
            length, offset = filling.add(part, taken)
            yield Placed(filling, part, taken, length, offset)
            taken += max(1, length)


class Filling:
    """A bucket on its way to being full: what lies where in it, without its memory."""

    def __init__(self, size: int) -> None:
        self.pieces: list[Piece] = []
        self._size, self._end = size, 0

    @property
    def used(self) -> int:
        """Bytes, as they are sent."""
        return min(self._size, _aligned(self._end))

    def takes(self, part: TensorPart, taken: int) -> bool:
        """There is room for what follows the part's first `taken` elements; for some of it, if the tensor
        fits no bucket or has begun.
        """
        size, start = part.data.element_size(), part.start + taken
        room = (self._size - self._offset(start)) // size
        if start:
            return room > 0
        whole = math.prod(part.shape)
        return room > 0 and (whole <= room or whole * size > self._size)

    def add(self, part: TensorPart, taken: int) -> tuple[int, int]:
        """Give room to as much of that as there is; the number of elements, and at which byte."""
        data, start = part.data, part.start + taken
        size, offset = data.element_size(), self._offset(start)
        length = min(data.numel() - taken, (self._size - offset) // size)
        if start and self.pieces:
            last = self.pieces[-1]
            self.pieces[-1] = last._replace(length=last.length + length)
        else:
            self.pieces.append(Piece(part.name, part.shape, _dtype_name(data.dtype), start, length, offset))
        self._end = offset + length * size
        return length, offset

    def bucket(self, data: NDArray[np.uint8]) -> Bucket:
        """As it is now, with its memory."""
        return Bucket(tuple(self.pieces), data[: self.used])

    def _offset(self, start: int) -> int:
        """Where the element `start` of a tensor goes: what continues the last piece follows it at once."""
        return self._end if start else _aligned(self._end)


class Move(NamedTuple):
    """`size` bytes between byte `offset` of a bucket and byte `first` of a tensor in host memory.

    The tensor's `address` is asked for each time: it may be given other memory.
    """

    offset: int
    address: Callable[[], int]
    first: int
    size: int


class Writing:
    """A bucket's memory, to be written."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.data, self._address = data, data.ctypes.data

    def write(self, offset: int, tensor: Tensor, first: int, length: int) -> None:
        """Copy elements [first, first + length) of `tensor` to byte `offset`."""
        size = tensor.element_size()
        if is_plain(tensor):
            ctypes.memmove(self._address + offset, tensor.data_ptr() + first * size, length * size)
        else:
            room = torch.from_numpy(self.data[offset : offset + length * size]).view(tensor.dtype)
            room.copy_(tensor.detach().reshape(-1)[first : first + length])


def unflatten(buckets: Iterable[Bucket], destination: Destination = nowhere) -> Iterator[NamedTensor]:
    """The tensors again, in order; each is valid until the next one is asked for.

    A tensor is copied to `destination(name)`, if that has its shape and is contiguous, and comes as that very
    memory; one that was not cut only if that is in host memory and has its dtype, too. Otherwise a tensor
    that lies in one bucket is a view of the bucket's bytes, not to be written to, and one that was cut is
    put together in memory of its own. Raises ValueError if pieces of a tensor are missing
    or out of order.
    """
    unfinished: tuple[str, Tensor, int] | None = None  # name, flat tensor, elements that have arrived
    for bucket in buckets:
        reading = _Reading(bucket.data)
        for piece in bucket.pieces:
            if unfinished is None and piece.whole:
                yield piece.name, reading.in_place(piece, destination(piece.name))
                continue
            if unfinished is None:
                unfinished = (piece.name, _room_for(piece, destination), 0)
            name, whole, arrived = unfinished
            if piece.name != name or piece.start != arrived:
                raise ValueError(
                    f"weights: got {piece.name} from element {piece.start}, expected {name} from {arrived}"
                )
            whole[arrived : arrived + piece.length].copy_(reading.view(piece))
            arrived += piece.length
            unfinished = (name, whole, arrived)
            if arrived == whole.numel():
                yield name, whole.view(piece.shape)
                unfinished = None
    if unfinished is not None:
        raise ValueError(
            f"weights: {unfinished[0]} ends after {unfinished[2]} of {unfinished[1].numel()} elements"
        )


def joined(tensors: Iterable[NamedTensor | TensorPart]) -> Iterator[NamedTensor]:
    """The same with parts put together: each tensor whole, in memory of its own where it came in parts."""
    whole = torch.empty(0)
    for item in tensors:
        if not isinstance(item, TensorPart):
            yield item
            continue
        if item.start == 0:
            whole = torch.empty(item.shape, dtype=item.data.dtype, device=item.data.device)
        end = item.start + item.data.numel()
        whole.view(-1)[item.start : end].copy_(item.data.reshape(-1))
        if end == whole.numel():
            yield item.name, whole


class _Reading:
    """A bucket's bytes as tensors."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self._data, self._address = data, data.ctypes.data

    @functools.cached_property
    def _bytes(self) -> Tensor:
        with warnings.catch_warnings():
            # Arrays that an object store maps are read-only, and torch has no read-only tensors; `unflatten`
            # says not to write.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(self._data)

    def view(self, piece: Piece) -> Tensor:
        """[length], of the bucket's memory."""
        dtype = dtype_named(piece.dtype)
        return self._bytes[piece.offset : piece.offset + piece.length * dtype.itemsize].view(dtype)

    def in_place(self, piece: Piece, place: Tensor | None) -> Tensor:
        """A whole tensor, copied to its place if it can be; else a view."""
        fits = place is not None and place.shape == piece.shape and place.dtype == dtype_named(piece.dtype)
        if place is None or not fits or not is_plain(place):
            return self.view(piece).view(piece.shape)
        ctypes.memmove(place.data_ptr(), self._address + piece.offset, place.nbytes)
        return place


@functools.cache
def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def is_plain(tensor: Tensor) -> bool:
    """Its elements follow each other in memory that this process can copy from and to."""
    return tensor.is_cpu and tensor.is_contiguous()


@functools.cache
def dtype_named(name: str) -> torch.dtype:
    """The dtype of `Piece.dtype`."""
    return getattr(torch, name)


def _room_for(piece: Piece, destination: Destination) -> Tensor:
    """Flat memory for the whole tensor that `piece` is part of."""
    found = destination(piece.name)
    if found is not None and tuple(found.shape) == piece.shape and found.is_contiguous():
        return found.detach().view(-1)
    return torch.empty(math.prod(piece.shape), dtype=dtype_named(piece.dtype))
