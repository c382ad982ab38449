"""Plans that are computed once and write every version."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.training.tensors.buckets import Bucket, TensorPart, flatten, new_bytes, unflatten
from orchestrator.training.tensors.write_plan import WritePlan

SIZES = st.lists(st.integers(0, 70), min_size=1, max_size=12)
BUCKETS = st.sampled_from([64, 100, 256, 1 << 12])


def parts_of(tensors: list[Tensor]) -> list[TensorPart]:
    """Each tensor as a single part."""
    return [TensorPart(str(index), tuple(each.shape), 0, each) for index, each in enumerate(tensors)]


def same(one: list[Bucket], other: list[Bucket]) -> bool:
    """Whether the pieces and the bytes of all tensors are equal."""
    return [bucket.pieces for bucket in one] == [bucket.pieces for bucket in other] and all(
        name == again and torch.equal(tensor, expected)
        for (name, tensor), (again, expected) in zip(unflatten(one), unflatten(other), strict=True)
    )


@pytest.mark.slow
@given(sizes=SIZES, bucket_bytes=BUCKETS, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_plan_fills_the_same_buckets_as_flatten(
    sizes: list[int], bucket_bytes: int, dtype: torch.dtype
) -> None:
    tensors = [torch.arange(size).to(dtype) for size in sizes]
    named = [(str(index), tensor) for index, tensor in enumerate(tensors)]
    plan = WritePlan(parts_of(tensors), bucket_bytes)
    assert same(list(plan.fill(new_bytes)), list(flatten(named, bucket_bytes)))


@pytest.mark.slow
@given(sizes=SIZES, bucket_bytes=BUCKETS, data=st.data())
def test_ranks_together_write_every_byte_once(
    sizes: list[int], bucket_bytes: int, data: st.DataObject
) -> None:
    """All of the requested bytes, at their places, and no others. A tensor may be
    split among ranks, as experts are.
    """
    whole = [torch.arange(size, dtype=torch.float32) + 1000 * index for index, size in enumerate(sizes)]
    cuts = [sorted({0, size, data.draw(st.integers(0, size))}) for size in sizes]
    owners = [[data.draw(st.integers(0, 2)) for _ in itertools.pairwise(edges)] for edges in cuts]

    def parts(rank: int) -> Iterator[TensorPart]:
        for index, (tensor, edges, owned) in enumerate(zip(whole, cuts, owners, strict=True)):
            if not tensor.numel():
                yield TensorPart(str(index), (0,), 0, tensor if rank == 0 else tensor.to("meta"))
            for (start, end), owner in zip(itertools.pairwise(edges), owned, strict=True):
                mine = tensor[start:end] if owner == rank else torch.empty(end - start, device="meta")
                yield TensorPart(str(index), tuple(tensor.shape), start, mine)

    plans = [WritePlan(parts(rank), bucket_bytes) for rank in range(3)]
    assert plans[0].contents == plans[1].contents == plans[2].contents
    memory: list[NDArray[np.uint8]] = [new_bytes(bucket_bytes) for _ in plans[0].buckets]
    for plan in plans:
        plan.write(memory)
    found = zip(plans[0].contents, memory, strict=True)
    got = list(unflatten(Bucket(pieces, room[:used]) for (pieces, used), room in found))
    assert [name for name, _ in got] == [str(index) for index in range(len(whole))]
    assert all(torch.equal(tensor, expected) for (_, tensor), expected in zip(got, whole, strict=True))
    assert sum(map(_written, plans)) == sum(tensor.nbytes for tensor in whole)


def _written(plan: WritePlan) -> int:
    moved = sum(move[3] for bucket in plan.buckets for move in bucket.moves)
    return moved + sum(copy[1].element_size() * copy[3] for bucket in plan.buckets for copy in bucket.copies)


def test_the_current_values_of_the_tensors_are_written() -> None:
    """Also if a parameter was given other memory, and if a part is a range of it."""
    parameter, apart = torch.nn.Parameter(torch.zeros(4, 2)), torch.zeros(3, 2).T
    stretch = parameter.detach().view(-1)[2:6]
    parts = [
        TensorPart("w", (4, 2), 0, parameter),
        TensorPart("stretch", (4,), 0, stretch, base=parameter),
        TensorPart("apart", (2, 3), 0, apart),
    ]
    plan = WritePlan(parts, 256)
    assert not any(tensor.any() for _, tensor in unflatten(plan.fill(new_bytes)))
    parameter.data = torch.arange(8.0).view(4, 2)
    apart.copy_(torch.arange(6.0).view(2, 3))
    got = dict(unflatten(plan.fill(new_bytes)))
    assert torch.equal(got["w"], torch.arange(8.0).view(4, 2))
    assert got["stretch"].tolist() == [2, 3, 4, 5]
    assert torch.equal(got["apart"], torch.arange(6.0).view(2, 3))


def test_a_bucket_size_below_the_alignment_is_rejected() -> None:
    with pytest.raises(ValueError, match="bucket_bytes: got 8, allowed: 64 or more"):
        WritePlan(parts_of([torch.zeros(3)]), 8)
