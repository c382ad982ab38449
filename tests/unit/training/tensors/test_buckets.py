"""Packing weights into byte buckets."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orchestrator.training.tensors.buckets import (
    ALIGNMENT,
    NamedTensor,
    TensorPart,
    flatten,
    joined,
    unflatten,
)


def _tensors() -> list[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        ("embedding", torch.randn(7, 5, generator=generator)),
        ("bias", torch.randn(3, generator=generator, dtype=torch.float64)),
        ("half", torch.randn(5, 3, generator=generator).to(torch.bfloat16)),
        ("mask", torch.tensor([True, False, True])),
        ("scalar", torch.tensor(4.5)),
        ("empty", torch.zeros(0, 4)),
        ("transposed", torch.randn(6, 50, generator=generator).T),
        ("after", torch.arange(9)),
    ]


@pytest.mark.parametrize("bucket_bytes", [64, 100, 256, 1 << 20])
def test_values_shapes_dtypes_and_order_are_preserved(bucket_bytes: int) -> None:
    for (name, tensor), (got_name, got) in zip(
        _tensors(), unflatten(flatten(_tensors(), bucket_bytes)), strict=True
    ):
        assert got_name == name
        assert got.dtype == tensor.dtype
        assert torch.equal(got, tensor)


@pytest.mark.parametrize("bucket_bytes", [64, 100, 256, 1 << 20])
def test_buckets_respect_the_size_limit_and_pieces_are_aligned(bucket_bytes: int) -> None:
    for bucket in flatten(_tensors(), bucket_bytes):
        assert 0 <= bucket.data.nbytes <= bucket_bytes
        assert all(piece.offset % ALIGNMENT == 0 for piece in bucket.pieces)


def test_only_tensors_that_fit_no_bucket_are_split() -> None:
    buckets = list(flatten([("a", torch.zeros(20)), ("b", torch.zeros(20)), ("c", torch.zeros(100))], 256))
    pieces = [[(piece.name, piece.start, piece.length) for piece in bucket.pieces] for bucket in buckets]
    assert pieces == [[("a", 0, 20), ("b", 0, 20)], [("c", 0, 64)], [("c", 64, 36)]]


def test_a_whole_tensor_is_a_view_of_its_bucket() -> None:
    (bucket,) = flatten([("a", torch.arange(4, dtype=torch.float32))], 256)
    ((_, view),) = unflatten([bucket])
    bucket.data[:4] = 0x7F
    assert view[0] != 0


def test_read_only_buckets_of_an_object_store_are_read() -> None:
    bucket = pickle.loads(pickle.dumps(next(flatten([("a", torch.arange(4))], 256))))
    bucket.data.flags.writeable = False
    ((_, tensor),) = unflatten([bucket])
    assert tensor.tolist() == [0, 1, 2, 3]


def test_missing_and_reordered_pieces_are_refused() -> None:
    first, second = flatten([("a", torch.arange(12, dtype=torch.int64))], 64)
    with pytest.raises(ValueError, match="a ends after 8 of 12 elements"):
        list(unflatten([first]))
    with pytest.raises(ValueError, match="got a from element 8, expected a from 0"):
        list(unflatten([second]))


def test_a_bucket_must_hold_one_aligned_element() -> None:
    with pytest.raises(ValueError, match="bucket_bytes: got 63, allowed: 64 or more"):
        list(flatten([], 63))


def test_a_split_tensor_is_assembled_in_its_destination() -> None:
    """In the destination if that has the tensor's shape, with any dtype; otherwise in new memory."""
    cut = torch.arange(100, dtype=torch.float32).view(4, 25)
    places = {"fits": torch.zeros(4, 25, dtype=torch.bfloat16), "other": torch.zeros(25, 4)}
    got = dict(unflatten(flatten([("fits", cut), ("other", cut), ("whole", cut[0])], 256), places.get))
    assert got["fits"].data_ptr() == places["fits"].data_ptr()
    assert torch.equal(places["fits"], cut.to(torch.bfloat16))
    assert not places["other"].any()
    assert torch.equal(got["other"], cut)
    assert torch.equal(got["whole"], cut[0])


def test_buckets_use_the_allocated_memory() -> None:
    memory = np.zeros(256, dtype=np.uint8)
    seen = [
        (bucket.data.ctypes.data, dict(unflatten([bucket])).popitem()[1].clone())
        for bucket in flatten([("a", torch.ones(60)), ("b", torch.ones(60) * 2)], 256, lambda size: memory)
    ]
    assert [address for address, _ in seen] == [memory.ctypes.data] * 2
    assert [tensor[0].item() for _, tensor in seen] == [1, 2]


def test_a_whole_tensor_is_copied_to_its_destination() -> None:
    """If the destination has its shape and dtype; otherwise it is a view of the bucket."""
    tensor = torch.arange(6, dtype=torch.float32).view(2, 3)
    places = {
        "fits": torch.zeros(2, 3),
        "wider": torch.zeros(2, 3, dtype=torch.float64),
        "apart": _apart(2, 3),
    }
    got = dict(unflatten(flatten([(name, tensor) for name in places], 256), places.get))
    assert {name for name in places if got[name] is places[name]} == {"fits"}
    assert all(torch.equal(found, tensor) for found in got.values())
    assert not places["wider"].any()
    assert not places["apart"].any()


def _apart(rows: int, columns: int) -> Tensor:
    """A tensor that is not contiguous."""
    return torch.zeros(columns, rows).T


@given(
    cuts=st.lists(st.integers(0, 60), max_size=5),
    bucket_bytes=st.sampled_from([64, 100, 256, 1 << 12]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_parts_give_the_same_buckets_as_the_whole_tensor(
    cuts: list[int], bucket_bytes: int, dtype: torch.dtype
) -> None:
    whole = torch.arange(60).to(dtype).view(3, 20)
    around = [("before", torch.ones(5)), ("after", torch.ones(3))]
    edges = sorted({0, 60, *cuts})
    parts: list[NamedTensor | TensorPart] = [
        TensorPart("w", (3, 20), start, whole.view(-1)[start:end]) for start, end in itertools.pairwise(edges)
    ]
    expected = list(flatten([around[0], ("w", whole), around[1]], bucket_bytes))
    got = list(flatten([around[0], *parts, around[1]], bucket_bytes))
    assert [bucket.pieces for bucket in got] == [bucket.pieces for bucket in expected]
    assert torch.equal(dict(unflatten(got))["w"], whole)
    ((_, put_together),) = joined(parts)
    assert torch.equal(put_together, whole)
