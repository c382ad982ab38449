"""The contract of the WeightChannel port."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch
from torch import Tensor

from orchestrator.training.tensors.buckets import Allocate, Bucket, NamedTensor, flatten, unflatten
from orchestrator.training.weights.channel import BucketSource, WeightChannel

BUCKET_BYTES = 4096


def tensors(value: float) -> list[NamedTensor]:
    """A small model: several buckets, one tensor that is split, one that is not float32."""
    return [
        ("embedding", torch.arange(5000, dtype=torch.float32).view(50, 100) + value),
        ("half", torch.full((33,), value, dtype=torch.bfloat16)),
        *((f"layer.{index}", torch.full((400,), value + index)) for index in range(6)),
        ("scalar", torch.tensor(value)),
    ]


def source(value: float) -> BucketSource:
    """The buckets of `tensors(value)`."""

    def buckets(allocate: Allocate) -> Iterator[Bucket]:
        return flatten(tensors(value), BUCKET_BYTES, allocate)

    return buckets


def pulled(channel: WeightChannel, handle: object) -> dict[str, Tensor]:
    """A copy of the tensors from a channel, read one at a time, as an engine does."""
    with closing(channel.pull(handle)) as buckets:
        return {name: tensor.clone() for name, tensor in unflatten(buckets)}


def same(one: dict[str, Tensor], value: float) -> bool:
    """Whether the tensors are exactly `tensors(value)`, bit for bit."""
    expected = dict(tensors(value))
    return one.keys() == expected.keys() and all(torch.equal(one[name], expected[name]) for name in one)


class WeightChannelContract:
    """Subclass it with a fixture `channel` that creates a new channel for each test."""

    def test_a_version_is_pulled_bit_equal_any_number_of_times(self, channel: WeightChannel) -> None:
        handle = channel.publish(0, source(0.5))
        assert same(pulled(channel, handle), 0.5)
        assert same(pulled(channel, handle), 0.5)

    def test_a_handle_can_be_pickled(self, channel: WeightChannel) -> None:
        handle = channel.publish(0, source(1.0))
        travelled = pickle.loads(pickle.dumps(handle))
        assert same(pulled(channel, travelled), 1.0)
        assert travelled.identity == handle.identity

    def test_every_publish_has_a_unique_identity(self, channel: WeightChannel) -> None:
        identities = [channel.publish(version, source(1.0)).identity for version in range(3)]
        assert len(set(identities)) == 3

    def test_the_previous_version_survives_the_next_publish(self, channel: WeightChannel) -> None:
        handles = [channel.publish(version, source(version)) for version in (0, 1, 5)]
        assert same(pulled(channel, handles[1]), 1)
        assert same(pulled(channel, handles[2]), 5)

    def test_a_version_that_is_being_read_never_changes(self, channel: WeightChannel) -> None:
        """A worker so slow that nine versions are published while it reads one."""
        handle = channel.publish(0, source(0.0))
        with closing(channel.pull(handle)) as buckets:
            slow: dict[str, Tensor] = {}
            for number, (name, tensor) in enumerate(unflatten(buckets)):
                slow[name] = tensor.clone()
                channel.publish(number + 1, source(number + 1.0))
        assert len(slow) == 9
        assert same(slow, 0.0)

    def test_versions_never_decrease(self, channel: WeightChannel) -> None:
        channel.publish(3, source(3))
        with pytest.raises(ValueError, match="cannot publish version 2: version 3 is already published"):
            channel.publish(2, source(4))

    def test_weights_that_were_lost_are_published_again(self, channel: WeightChannel) -> None:
        channel.publish(3, source(3.0))
        again = channel.publish(3, source(3.0))
        assert same(pulled(channel, again), 3.0)
        assert same(pulled(channel, channel.publish(4, source(4.0))), 4.0)

    def test_a_failed_publish_keeps_the_previous_version(self, channel: WeightChannel) -> None:
        def broken(allocate: Allocate) -> Iterator[Bucket]:
            yield from source(1.0)(allocate)
            raise OSError("rank 1 was lost")

        handle = channel.publish(0, source(0.0))
        with pytest.raises(OSError, match="rank 1 was lost"):
            channel.publish(1, broken)
        assert same(pulled(channel, handle), 0.0)
        assert same(pulled(channel, channel.publish(1, source(2.0))), 2.0)
