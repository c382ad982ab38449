"""The contract of weight channels on the fake and on shared memory. `test_ray_weight_channel.py`
runs it on Ray's object store.
"""

from __future__ import annotations

import pickle

import pytest

from orchestrator.training.weights.channel import MemoryChannel, WeightChannel, WeightsNotFoundError
from orchestrator.training.weights.shared_memory import SharedMemoryChannel
from tests.contracts.weight_channel_contract import WeightChannelContract, pulled, source


class TestMemoryChannel(WeightChannelContract):
    @pytest.fixture
    def channel(self) -> WeightChannel:
        return MemoryChannel()

    def test_old_versions_are_dropped(self, channel: WeightChannel) -> None:
        late, *_ = [channel.publish(version, source(version)) for version in (0, 1, 5)]
        with pytest.raises(
            WeightsNotFoundError, match=r"version 0 are gone: the channel holds \[1, 5\]"
        ) as caught:
            pulled(channel, late)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

    def test_a_channel_keeps_at_least_one_version(self) -> None:
        with pytest.raises(ValueError, match="keep: got 0, allowed: 1 or more"):
            MemoryChannel(keep=0)


class TestSharedMemoryChannel(WeightChannelContract):
    @pytest.fixture
    def channel(self) -> WeightChannel:
        return SharedMemoryChannel()
