"""Publishing and pulling weight versions."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest
import torch

from orchestrator.training.buckets import Bucket, flatten, unflatten
from orchestrator.training.weights.channel import MemoryChannel, WeightsNotFoundError


def _weights(value: float) -> Iterator[Bucket]:
    return flatten([("w", torch.full((40,), value))], 64)


def test_a_version_comes_back_as_it_was_published() -> None:
    channel = MemoryChannel()
    channel.publish(0, _weights(0.5))
    ((name, tensor),) = unflatten(channel.pull(0))
    assert (name, tensor.tolist()) == ("w", [0.5] * 40)


def test_the_latest_is_the_newest_and_old_ones_are_pushed_out() -> None:
    channel = MemoryChannel(keep=2)
    assert channel.latest() is None
    for version in (0, 1, 5):
        channel.publish(version, _weights(version))
    assert channel.latest() == 5
    assert next(unflatten(channel.pull(1)))[1][0] == 1
    with pytest.raises(WeightsNotFoundError, match=r"version 0 .* which holds \[1, 5\]") as caught:
        channel.pull(0)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_versions_only_rise() -> None:
    channel = MemoryChannel()
    channel.publish(3, _weights(3))
    with pytest.raises(ValueError, match="got version 3, and 3 is already published"):
        channel.publish(3, _weights(4))


def test_a_publish_that_fails_half_way_is_not_seen() -> None:
    def broken() -> Iterator[Bucket]:
        yield from _weights(1)
        raise OSError("rank 1 was lost")

    channel = MemoryChannel()
    channel.publish(0, _weights(0))
    with pytest.raises(OSError, match="rank 1 was lost"):
        channel.publish(1, broken())
    assert channel.latest() == 0


def test_a_channel_keeps_at_least_one_version() -> None:
    with pytest.raises(ValueError, match="keep: got 0, allowed: 1 or more"):
        MemoryChannel(keep=0)
