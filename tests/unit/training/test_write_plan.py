"""Plans that are made once and write every version."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.training.buckets import Bucket, TensorPart, flatten, new_bytes, unflatten
from orchestrator.training.write_plan import WritePlan

SIZES = st.lists(st.integers(0, 70), min_size=1, max_size=12)
BUCKETS = st.sampled_from([64, 100, 256, 1 << 12])


def parts_of(tensors: list[Tensor], mine: list[bool] | None = None) -> list[TensorPart]:
    """Whole tensors; those that are not `mine` on the device "meta"."""
    chosen = [True] * len(tensors) if mine is None else mine
    return [
        TensorPart(str(index), tuple(each.shape), 0, each if keep else torch.empty_like(each, device="meta"))
        for index, (each, keep) in enumerate(zip(tensors, chosen, strict=True))
    ]


def same(one: list[Bucket], other: list[Bucket]) -> bool:
    """In pieces, and in the bytes of all tensors."""
    return [bucket.pieces for bucket in one] == [bucket.pieces for bucket in other] and all(
        name == again and torch.equal(tensor, expected)
        for (name, tensor), (again, expected) in zip(unflatten(one), unflatten(other), strict=True)
    )


@given(sizes=SIZES, bucket_bytes=BUCKETS, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_plan_fills_the_buckets_that_flatten_makes(
    sizes: list[int], bucket_bytes: int, dtype: torch.dtype
) -> None:
    tensors = [torch.arange(size).to(dtype) for size in sizes]
    named = [(str(index), tensor) for index, tensor in enumerate(tensors)]
    plan = WritePlan(parts_of(tensors), bucket_bytes)
    assert same(list(plan.fill(new_bytes)), list(flatten(named, bucket_bytes)))


@given(sizes=SIZES, bucket_bytes=BUCKETS, data=st.data())
def test_ranks_together_write_every_byte_once(sizes: list[int], bucket_bytes: int, data: st.DataObject):
    """All of what was asked for, and no byte more."""
    whole = [torch.full((size,), 7.0) for size in sizes]
    owners = [data.draw(st.integers(0, 2)) for _ in sizes]
    shares = [[owner == rank for owner in owners] for rank in range(3)]
    plans = [WritePlan(parts_of(whole, share), bucket_bytes) for share in shares]
    assert plans[0].contents == plans[1].contents == plans[2].contents
    written = [_written(plan) for plan in plans]
    memory: list[NDArray[np.uint8]] = [new_bytes(bucket_bytes) for _ in plans[0].buckets]
    for plan in plans:
        plan.write(memory)
    found = zip(plans[0].contents, memory, strict=True)
    buckets = [Bucket(pieces, room[:used]) for (pieces, used), room in found]
    assert all(bool((tensor == 7).all()) for _, tensor in unflatten(buckets))
    assert sum(written) == sum(tensor.nbytes for tensor in whole)


def _written(plan: WritePlan) -> int:
    moved = sum(move[3] for bucket in plan.buckets for move in bucket.moves)
    return moved + sum(copy[1].element_size() * copy[3] for bucket in plan.buckets for copy in bucket.copies)


def test_what_the_tensors_hold_then_is_written() -> None:
    """Also where a parameter was given other memory."""
    parameter, apart = torch.nn.Parameter(torch.zeros(4, 2)), torch.zeros(3, 2).T
    parts = [TensorPart("w", (4, 2), 0, parameter), TensorPart("apart", (2, 3), 0, apart)]
    plan = WritePlan(parts, 256)
    assert not any(bucket.data[:32].any() for bucket in plan.fill(new_bytes))
    parameter.data = torch.ones(4, 2)
    apart.copy_(torch.arange(6.0).view(2, 3))
    got = dict(unflatten(plan.fill(new_bytes)))
    assert torch.equal(got["w"], torch.ones(4, 2))
    assert torch.equal(got["apart"], torch.arange(6.0).view(2, 3))


def test_a_bucket_that_holds_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="bucket_bytes: got 8, allowed: 64 or more"):
        WritePlan(parts_of([torch.zeros(3)]), 8)
