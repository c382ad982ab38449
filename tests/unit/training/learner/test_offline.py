"""Reassembling whole weights from shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from orchestrator.errors import CheckpointError
from orchestrator.training.learner.offline import read_weights

WEIGHT = torch.arange(12, dtype=torch.float32).view(3, 4)


def shard(directory: Path, rank: int, tensors: dict[str, Tensor], **changed: str) -> None:
    shapes = {key.partition("@")[0]: [3, 4] for key in tensors if "@" in key}
    metadata = {"format": "1", "rank": str(rank), "world_size": "2", "shapes": json.dumps(shapes)} | changed
    save_file(tensors, directory / f"rank-{rank}-of-2.safetensors", metadata)


def test_ranges_are_merged_to_whole_parameters_followed_by_buffers(tmp_path: Path) -> None:
    flat = WEIGHT.flatten()
    shard(
        tmp_path,
        0,
        {"b@0/master": flat[:5].clone(), "a@7/master": flat[7:].clone(), "buffer/bias": torch.ones(2)},
    )
    shard(
        tmp_path,
        1,
        {"b@5/master": flat[5:].clone(), "a@0/master": flat[:7].clone(), "a@0/exp_avg": torch.ones(7)},
    )
    found = dict(read_weights(tmp_path))
    assert found.keys() == {"a", "b", "bias"}
    assert torch.equal(found["a"], WEIGHT)
    assert torch.equal(found["b"], WEIGHT)
    assert found["bias"].tolist() == [1, 1]


def test_a_missing_range_is_reported(tmp_path: Path) -> None:
    shard(tmp_path, 0, {"a@0/master": torch.zeros(5)})
    shard(tmp_path, 1, {"a@7/master": torch.zeros(5)})
    with pytest.raises(CheckpointError, match="a/master has 5 of 12 elements"):
        list(read_weights(tmp_path))


def test_missing_shards_and_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no shards of a learner"):
        list(read_weights(tmp_path))
    shard(tmp_path, 0, {"a@0/master": torch.zeros(12)})
    with pytest.raises(CheckpointError, match="got 1 shards, expected 2"):
        list(read_weights(tmp_path))
    shard(tmp_path, 1, {"b@0/master": torch.zeros(12)}, format="0")
    with pytest.raises(CheckpointError, match="got format 0, expected 1"):
        list(read_weights(tmp_path))


@pytest.mark.parametrize("shapes", [None, "{", "[]", '{"a": 3}'], ids=str)
def test_malformed_shard_metadata_is_rejected(shapes: str | None, tmp_path: Path) -> None:
    """Also when a learner loads it, because there is a single reader."""
    metadata = None if shapes is None else {"format": "1", "world_size": "1", "shapes": shapes}
    save_file({"a@0/master": torch.zeros(12)}, tmp_path / "rank-0-of-1.safetensors", metadata)
    with pytest.raises(CheckpointError, match="got format None" if shapes is None else "names no shapes"):
        list(read_weights(tmp_path))


def test_overlapping_ranges_do_not_count_twice(tmp_path: Path) -> None:
    shard(tmp_path, 0, {"a@0/master": torch.zeros(7)})
    shard(tmp_path, 1, {"a@2/master": torch.zeros(5)})
    with pytest.raises(CheckpointError, match="a/master has 7 of 12 elements"):
        list(read_weights(tmp_path))


def test_a_file_that_is_not_a_shard_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "rank-0-of-1.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"[Hh]eader"):
        list(read_weights(tmp_path))
