"""Weights between real actors, over every channel that a run can use."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import RayActorError
from torch import Tensor

from orchestrator.config.compose import compose
from orchestrator.launch.assembly import run_spec
from orchestrator.training.cluster.actors import RolloutActor
from orchestrator.training.cluster.object_store_channel import ObjectStoreChannel, make_channel
from orchestrator.training.cluster.run_spec import ActorIdentity, RunSpec
from orchestrator.training.models.build import build_model
from orchestrator.training.records import Prompt, SamplingParams
from orchestrator.training.stages import PublishedWeights, RolloutRequest, WeightRef
from orchestrator.training.tensors.buckets import Allocate, Bucket, flatten
from orchestrator.training.usage import Role
from orchestrator.training.weights.channel import WeightChannel, WeightsNotFoundError
from tests.contracts.weight_channel_contract import WeightChannelContract
from tests.support.lanes import also_long

pytestmark = [pytest.mark.slow, pytest.mark.ray]

BUCKET_BYTES = 65536
KEYS = itertools.count()
"""Of requests; later ones have newer weights."""


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Generator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2**28)
    yield
    ray.shutdown()


class TestObjectStoreChannel(WeightChannelContract):
    @pytest.fixture
    def channel(self) -> WeightChannel:
        return ObjectStoreChannel()


class Publisher:
    """Rank 0 of a learner as the channel sees it: version v of its model has the
    weights of seed `first_seed` + v.
    """

    def __init__(self, parts: RunSpec, first_seed: int = 0) -> None:
        self._parts, self._first_seed = parts, first_seed
        self._channel = make_channel(parts.weights)

    def publish(self, version: int) -> tuple[Any, int]:
        """Return the handle and the id of the publishing process."""

        def buckets(allocate: Allocate) -> Iterator[Bucket]:
            return flatten(self._state(version).items(), BUCKET_BYTES, allocate)

        return self._channel.publish(version, buckets), os.getpid()

    def _state(self, version: int) -> dict[str, Tensor]:
        return build_model(self._parts.model, self._first_seed + version).state_dict()


class Worker(RolloutActor):
    """A rollout worker that shows its weights."""

    async def weights(self) -> dict[str, Tensor]:
        engine: Any = self._worker._engines.training  # pyright: ignore[reportPrivateUsage]
        names = build_model(self._spec.model, 0).state_dict()
        storage = engine.sampler.weight_storage
        return {name: tensor.clone() for name in names if (tensor := storage(name)) is not None}


def _parts(channel: str, directory: Path) -> RunSpec:
    parts = run_spec(compose("grpo", ["tracking=none"]), "run", 1, directory)
    return replace(parts, weights=parts.weights.model_copy(update={"channel": channel}))


def _start(shell: type, *arguments: object) -> Any:
    return ray.remote(shell).options(num_cpus=0).remote(*arguments)


def _worker(parts: RunSpec, index: int) -> Any:
    worker = _start(Worker, parts, ActorIdentity(f"rollout-{index}", Role.ROLLOUT, 0, ()))
    _get(worker.ready.remote())
    return worker


def _request(version: int) -> RolloutRequest:
    prompt = Prompt("p", "1+2=", {})
    return RolloutRequest(((0, prompt),), version, 2, SamplingParams(1.0, 1.0, 4, 0))


def _sampled_versions(worker: Any, version: int, handle: object) -> set[int]:
    key = next(KEYS)
    weights = PublishedWeights(version, WeightRef(handle), sequence=key)
    answer: Any = ray.get(worker.generate.remote(key, _request(version), weights))
    return set(answer[0].versions.tolist())


@pytest.mark.parametrize("channel", also_long(["object_store"], ["shared_memory"]))
def test_two_workers_sample_with_exactly_the_published_weights(channel: str, tmp_path: Path) -> None:
    parts = _parts(channel, tmp_path)
    publisher, workers = _start(Publisher, parts), [_worker(parts, index) for index in range(2)]
    restored = _start(Publisher, parts, 100)
    for learner, version, seed in ((publisher, 3, 3), (publisher, 4, 4), (restored, 4, 104)):
        handle, _ = _get(learner.publish.remote(version))
        expected = build_model(parts.model, seed).state_dict()
        for worker in workers:
            assert _sampled_versions(worker, version, handle) == {version}
            held: dict[str, Tensor] = _get(worker.weights.remote())
            assert held.keys() == expected.keys()
            assert all(torch.equal(held[name], expected[name]) for name in expected)
    for actor in (publisher, restored, *workers):
        ray.kill(actor)


@pytest.mark.parametrize("channel", ["shared_memory"])
def test_a_worker_survives_the_loss_of_the_weights_of_a_killed_learner(channel: str, tmp_path: Path) -> None:
    """The weights are gone with the process; the object store notices some time later."""
    parts = _parts(channel, tmp_path)
    publisher, worker = _start(Publisher, parts), _worker(parts, 0)
    handle, process = _get(publisher.publish.remote(0))
    os.kill(process, signal.SIGKILL)
    with pytest.raises(RayActorError):
        _get(publisher.publish.remote(1))
    with pytest.raises(WeightsNotFoundError, match="version 0 are gone"):
        _sampled_versions(worker, 0, handle)
    second = _start(Publisher, parts)
    handle, _ = _get(second.publish.remote(1))
    assert _sampled_versions(worker, 1, handle) == {1}
    for actor in (second, worker):
        ray.kill(actor)


def _get(ref: Any) -> Any:
    return ray.get(ref)
