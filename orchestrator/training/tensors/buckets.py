"""Packs named tensors into flat byte buckets, in which weights travel from the learner to rollout workers.

    ("a", [2, 3]), ("b", [4])  --flatten-->  Bucket(pieces=(a, b), data=uint8[...])  --unflatten-->  the same

A bucket is a numpy array of bytes with a manifest, so an object store can hold and map it without copying. No
bucket is larger than `bucket_bytes`: a tensor that does not fit is split into consecutive pieces. A tensor
may be passed in parts, as the ranks hold them; the buckets are the same as for the whole tensor.

Each side copies once: into the memory returned by `allocate`, and out of it into the memory returned by
`destination`. All torch dtypes are supported, including bfloat16, because numpy only sees bytes.

Names are those of `model.state_dict()` in transformers, which `load_state_dict` and `save_pretrained` use.
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
    """Consecutive elements of a tensor of `shape`, in row-major order, starting at element `start`."""

    name: str
    shape: tuple[int, ...]
    start: int
    data: Tensor
    base: Tensor | None = None
    """The parameter that `data` is a view of, if any. Its memory may be reallocated later."""


Allocate = Callable[[int], NDArray[np.uint8]]
"""Allocates that many bytes for the next bucket. It is called after the previous bucket was consumed."""

Destination = Callable[[str], Tensor | None]
"""Returns the final memory of the weight with that name; None if it cannot be written piece by piece."""

ALIGNMENT = 64
"""Bytes. Every piece starts at a multiple, so that a view of any dtype is
aligned (and starts on a cache line).
"""


class Piece(NamedTuple):
    """`length` elements of one tensor, starting at element `start` in row-major order, stored at byte
    `offset` of the bucket. `shape` and `dtype` describe the whole tensor; `dtype` is torch's name without the
    prefix ("float32", "bfloat16").
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    length: int
    offset: int

    @property
    def whole(self) -> bool:
        """Whether the piece is the whole tensor."""
        return self.length == math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Pieces of tensors, and the bytes that contain them."""

    pieces: tuple[Piece, ...]
    data: NDArray[np.uint8]  # [bytes]


def new_bytes(size: int) -> NDArray[np.uint8]:
    """The default `Allocate`: new, uninitialised memory."""
    return np.empty(size, dtype=np.uint8)


def nowhere(name: str) -> None:
    """The default `Destination`: no weight has a destination."""


def flatten(
    tensors: Iterable[NamedTensor | TensorPart], bucket_bytes: int, allocate: Allocate = new_bytes
) -> Iterator[Bucket]:
    """Pack tensors, in order, into buckets of at most `bucket_bytes`. Only one bucket is held at a
    time, plus a temporary copy of tensors that are not contiguous; the tensors may be on a GPU. The
    parts of a tensor must be consecutive.

    `allocate` may return the same memory again: then a bucket is only valid until the next one is requested.
    Raises ValueError if `bucket_bytes` is smaller than one aligned element (64 bytes).
    """
    for filling, placed in groupby(placements(tensors, bucket_bytes), lambda each: each.filling):
        writing = Writing(allocate(bucket_bytes))
        for each in placed:
            writing.write(each.offset, each.part.data, each.first, each.length)
        yield filling.bucket(writing.data)


class Placed(NamedTuple):
    """Places `length` elements of `part.data`, starting at `first`, at byte `offset` of a bucket."""

    filling: Filling
    part: TensorPart
    first: int
    length: int
    offset: int


def placements(tensors: Iterable[NamedTensor | TensorPart], bucket_bytes: int) -> Iterator[Placed]:
    """Compute the copies of `flatten`, bucket by bucket. Only shapes and dtypes are used: tensors may
    be on the device "meta". A bucket is complete when the first placement of the next one is yielded.
    Raises ValueError like `flatten`.
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
    """The layout of a bucket while it is being filled, without its memory."""

    def __init__(self, size: int) -> None:
        self.pieces: list[Piece] = []
        self._size, self._end = size, 0

    @property
    def used(self) -> int:
        """Number of bytes that are sent."""
        return min(self._size, _aligned(self._end))

    def takes(self, part: TensorPart, taken: int) -> bool:
        """Whether there is room for the elements after the first `taken` ones of the part. A tensor that fits
        into no bucket, or was already started, only needs room for some of its elements.
        """
        size, start = part.data.element_size(), part.start + taken
        room = (self._size - self._offset(start)) // size
        if start:
            return room > 0
        whole = math.prod(part.shape)
        return room > 0 and (whole <= room or whole * size > self._size)

    def add(self, part: TensorPart, taken: int) -> tuple[int, int]:
        """Place as many of the elements after `taken` as fit. Returns their number and byte offset."""
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
        """Return the bucket in its present state, with its memory."""
        return Bucket(tuple(self.pieces), data[: self.used])

    def _offset(self, start: int) -> int:
        """Byte offset for the element `start` of a tensor. An element that continues the
        last piece directly follows it.
        """
        return self._end if start else _aligned(self._end)


class Move(NamedTuple):
    """A copy of `size` bytes between byte `offset` of a bucket and byte `first` of a tensor in host memory.

    `address` is called for every copy, because the memory of the tensor may be reallocated.
    """

    offset: int
    address: Callable[[], int]
    first: int
    size: int


class Writing:
    """Writes tensors into the memory of a bucket."""

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
    """Unpack the tensors, in order. Each one is valid until the next one is requested.

    A tensor is copied to `destination(name)` if that has its shape and is contiguous, and the destination
    itself is yielded; for a tensor that was not split, the destination must also be in host memory and have
    its dtype. Otherwise a tensor that lies in one bucket is yielded as a view of the bucket, which must not
    be written to, and a tensor that was split is assembled in new memory. Raises ValueError if pieces of a
    tensor are missing or out of order.
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
    """Assemble tensors that are passed in parts; the other tensors are yielded unchanged."""
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
    """Reads a bucket's bytes as tensors."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self._data, self._address = data, data.ctypes.data

    @functools.cached_property
    def _bytes(self) -> Tensor:
        with warnings.catch_warnings():
            # Arrays that an object store maps are read-only, but torch has no read-only tensors. `unflatten`
            # documents that views must not be written to.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(self._data)

    def view(self, piece: Piece) -> Tensor:
        """A view of the bucket's memory, [length]."""
        dtype = dtype_named(piece.dtype)
        return self._bytes[piece.offset : piece.offset + piece.length * dtype.itemsize].view(dtype)

    def in_place(self, piece: Piece, place: Tensor | None) -> Tensor:
        """Return a whole tensor, copied to its destination if possible, otherwise as a view."""
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
    """Whether the elements are contiguous in memory that this process can copy from and to."""
    return tensor.is_cpu and tensor.is_contiguous()


@functools.cache
def dtype_named(name: str) -> torch.dtype:
    """The dtype of `Piece.dtype`."""
    return getattr(torch, name)


def _room_for(piece: Piece, destination: Destination) -> Tensor:
    """Return flat memory for the whole tensor of `piece`."""
    found = destination(piece.name)
    if found is not None and tuple(found.shape) == piece.shape and found.is_contiguous():
        return found.detach().view(-1)
    return torch.empty(math.prod(piece.shape), dtype=dtype_named(piece.dtype))
