"""Named tensors as flat byte buckets: how weights leave the learner, cross processes and reach a rollout
worker.

    ("a", [2, 3]), ("b", [4])  --flatten-->  Bucket(pieces=(a, b), data=uint8[...])  --unflatten-->  the same

A bucket is a numpy array of bytes and a manifest, so an object store can hold and map it without copying. No
bucket is larger than `bucket_bytes`: a tensor that does not fit is cut into pieces that follow each other.
Each side copies once: into the memory that `allocate` gives, and out of it into the memory that `destination`
names. Any torch dtype travels, bfloat16 too: numpy sees bytes.

Names are those of `model.state_dict()` in transformers: what `load_state_dict` takes and `save_pretrained`
starts from.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NamedTensor = tuple[str, Tensor]

Allocate = Callable[[int], NDArray[np.uint8]]
"""Memory for the next bucket, of that many bytes. It is asked for after the bucket before was taken."""

Destination = Callable[[str], Tensor | None]
"""Where a weight of that name belongs in the end; None if it can't be written piece by piece."""

ALIGNMENT = 64
"""Bytes: every piece starts at a multiple, so that a view of any dtype is aligned (and on a cache line)."""


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` elements of one tensor, from element `start` of its row-major order, at byte `offset` of the
    bucket. `shape` and `dtype` are the whole tensor's; `dtype` is torch's name without the prefix ("float32",
    "bfloat16").
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    count: int
    offset: int

    @property
    def whole(self) -> bool:
        """The piece is all of its tensor."""
        return self.count == math.prod(self.shape)


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
    tensors: Iterable[NamedTensor], bucket_bytes: int, allocate: Allocate = new_bytes
) -> Iterator[Bucket]:
    """Pack tensors, in order, into buckets of at most `bucket_bytes`. Holds one bucket at a time, and nothing
    beside it if the tensors are contiguous; they may lie on a GPU.

    `allocate` may give the same memory again: then a bucket is valid until the next one is asked for. Raises
    ValueError if `bucket_bytes` is less than one aligned element needs (64).
    """
    if bucket_bytes < ALIGNMENT:
        raise ValueError(f"bucket_bytes: got {bucket_bytes}, allowed: {ALIGNMENT} or more")
    pieces: list[Piece] = []
    data = new_bytes(0)
    memory = torch.from_numpy(data)
    used = 0
    for name, tensor in tensors:
        source, size = _bytes_of(tensor), tensor.element_size()
        numel, shape, dtype = tensor.numel(), tuple(tensor.shape), _dtype_name(tensor.dtype)
        start = 0
        while start < numel or (numel == 0 and start == 0):
            room = (bucket_bytes - used) // size
            rest = numel - start
            fits_later = rest * size <= bucket_bytes and start == 0
            if pieces and (room == 0 or (rest > room and fits_later)):
                yield Bucket(tuple(pieces), data[:used])
                pieces, used = [], 0
                continue
            if not pieces:
                data = allocate(bucket_bytes)
                memory = torch.from_numpy(data)
            count = min(rest, room)
            memory[used : used + count * size].copy_(source[start * size : (start + count) * size])
            pieces.append(Piece(name, shape, dtype, start, count, used))
            start += max(count, 1)
            used = min(bucket_bytes, used + -(-count * size // ALIGNMENT) * ALIGNMENT)
    if pieces:
        yield Bucket(tuple(pieces), data[:used])


def unflatten(buckets: Iterable[Bucket], destination: Destination = nowhere) -> Iterator[NamedTensor]:
    """The tensors again, in order. A tensor that lies in one bucket is a view of the bucket's bytes: do not
    write to it, and copy it before the next tensor is asked for.

    A tensor that was cut is put together in `destination(name)`, if that has its shape and is contiguous, and
    comes as that very memory; otherwise in memory of its own. Raises ValueError if pieces of a tensor are
    missing or out of order.
    """
    unfinished: tuple[str, Tensor, int] | None = None  # name, flat tensor, elements that have arrived
    for bucket in buckets:
        flat = _as_tensor(bucket.data)
        for piece in bucket.pieces:
            dtype = getattr(torch, piece.dtype)
            view = flat[piece.offset : piece.offset + piece.count * dtype.itemsize].view(dtype)
            if unfinished is None and piece.whole:
                yield piece.name, view.view(piece.shape)
                continue
            if unfinished is None:
                unfinished = (piece.name, _room_for(piece, dtype, destination), 0)
            name, whole, arrived = unfinished
            if piece.name != name or piece.start != arrived:
                raise ValueError(
                    f"weights: got {piece.name} from element {piece.start}, expected {name} from {arrived}"
                )
            whole[arrived : arrived + piece.count].copy_(view)
            arrived += piece.count
            unfinished = (name, whole, arrived)
            if arrived == whole.numel():
                yield name, whole.view(piece.shape)
                unfinished = None
    if unfinished is not None:
        raise ValueError(
            f"weights: {unfinished[0]} ends after {unfinished[2]} of {unfinished[1].numel()} elements"
        )


@functools.cache
def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _bytes_of(tensor: Tensor) -> Tensor:
    """The tensor's elements as bytes, in row-major order: a view where it is contiguous."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def _room_for(piece: Piece, dtype: torch.dtype, destination: Destination) -> Tensor:
    """Flat memory for the whole tensor that `piece` is part of."""
    found = destination(piece.name)
    if found is not None and tuple(found.shape) == piece.shape and found.is_contiguous():
        return found.detach().view(-1)
    return torch.empty(math.prod(piece.shape), dtype=dtype)


def _as_tensor(data: NDArray[np.uint8]) -> Tensor:
    with warnings.catch_warnings():
        # Arrays that an object store maps are read-only, and torch has no read-only tensors; `unflatten` says
        # not to write.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(data)
