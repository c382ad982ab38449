"""The copy of a shard from which checkpoints are written."""

from __future__ import annotations

import torch

from orchestrator.training.learner.sharding.shards import Shard
from orchestrator.training.learner.sharding.snapshot import HostMemory


def _shard(value: float) -> Shard:
    tensors = {
        "master": torch.full((3, 5), value),
        "step": torch.tensor(value, dtype=torch.float64),
        "half": torch.full((7,), value, dtype=torch.bfloat16),
    }
    return Shard("rank-0-of-1.safetensors", tensors, {"rank": "0"})


def _addresses(shard: Shard) -> list[int]:
    return [tensor.data_ptr() for tensor in shard.tensors.values()]


def test_a_snapshot_is_independent_and_reuses_its_memory() -> None:
    memory, shard = HostMemory(), _shard(1)
    copy = memory.copy(shard)
    for tensor in shard.tensors.values():
        tensor.zero_()
    assert (copy.file, copy.metadata) == (shard.file, shard.metadata)
    for name, tensor in _shard(1).tensors.items():
        assert torch.equal(copy.tensors[name], tensor)
        assert copy.tensors[name].dtype == tensor.dtype
    assert _addresses(memory.copy(_shard(2))) == _addresses(copy)


def test_reserved_memory_is_used_for_the_snapshot() -> None:
    memory = HostMemory()
    assert not memory.reserved
    memory.reserve(_shard(1))
    assert memory.reserved
    copies = [memory.copy(_shard(value)) for value in (3, 4)]
    assert _addresses(copies[0]) == _addresses(copies[1])
    assert torch.equal(copies[1].tensors["master"], _shard(4).tensors["master"])


def test_a_shard_that_has_grown_gets_more_memory() -> None:
    memory = HostMemory()
    memory.reserve(_shard(1))
    grown = Shard("f", {"a": torch.arange(4096.0)}, {})
    assert torch.equal(memory.copy(grown).tensors["a"], torch.arange(4096.0))
