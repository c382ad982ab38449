"""The weight channel's contract on the fake, on shared memory and on torch.distributed; on Ray's object store
in `test_ray_weight_channel.py`."""

from __future__ import annotations

import pickle
from collections.abc import Generator

import pytest
import torch

from orchestrator.training.weights.channel import MemoryChannel, WeightChannel, WeightsNotFoundError
from orchestrator.training.weights.collective import CollectiveChannel
from orchestrator.training.weights.shared_memory import SharedMemoryChannel
from tests.contracts.weight_channel_contract import WeightChannelContract, pulled, source
from tests.contracts.weight_processes import HOST, PullsElsewhere, WorkerProcess


class TestMemoryChannel(WeightChannelContract):
    @pytest.fixture
    def channel(self) -> WeightChannel:
        return MemoryChannel()

    def test_old_versions_are_pushed_out(self, channel: WeightChannel) -> None:
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


class TestCollectiveChannel(WeightChannelContract):
    """Both sides in this process: the pair is of two threads."""

    @pytest.fixture
    def channel(self) -> Generator[WeightChannel]:
        channel = CollectiveChannel(HOST, "gloo", timeout_seconds=120.0)
        yield channel
        channel.close()


@pytest.fixture(scope="module")
def worker() -> Generator[WorkerProcess]:
    """One for all tests: each has a publisher of its own, which the worker finds in the handle."""
    worker = WorkerProcess(timeout_seconds=120.0)
    yield worker
    worker.close()


class TestCollectiveChannelBetweenProcesses(WeightChannelContract):
    @pytest.fixture
    def channel(self, worker: WorkerProcess) -> Generator[WeightChannel]:
        channel = PullsElsewhere(CollectiveChannel(HOST, "gloo", timeout_seconds=120.0), worker)
        yield channel
        channel.close()


@pytest.mark.gpu
class TestCollectiveChannelOverNccl(WeightChannelContract):
    """Unproven: no machine with two GPUs was to be had where this was written."""

    @pytest.fixture
    def channel(self) -> Generator[WeightChannel]:
        if torch.cuda.device_count() < 2:
            pytest.skip("needs 2 GPUs: NCCL refuses two ranks on one")
        worker = WorkerProcess(timeout_seconds=60.0, gpu=1)
        channel = PullsElsewhere(CollectiveChannel(HOST, "nccl", timeout_seconds=60.0), worker)
        yield channel
        channel.close()
        worker.close()
