"""The rollout worker without Ray: which weights it samples with."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest

from orchestrator.config.compose import compose
from orchestrator.launch.assembly import run_spec
from orchestrator.training.cluster import actors
from orchestrator.training.cluster.run_spec import ActorIdentity
from orchestrator.training.records import Prompt, SamplingParams, WeightVersion
from orchestrator.training.rollouts.engines import ENGINES
from orchestrator.training.rollouts.scripted import ScriptedEngine
from orchestrator.training.stages import PublishedWeights, RolloutRequest, WeightRef
from orchestrator.training.tensors.buckets import Bucket, unflatten
from orchestrator.training.usage import Role
from orchestrator.training.weights.shared_memory import SharedMemoryChannel
from tests.contracts.weight_channel_contract import source

REQUEST = RolloutRequest(((0, Prompt("p", "1+2=", {})),), 11, 2, SamplingParams(1.0, 1.0, 4, 0))


class ShowsItsWeights(ScriptedEngine):
    """Keeps one number of the weights that it loads."""

    def __init__(self) -> None:
        super().__init__(context=32)
        self.loaded: list[float] = []

    async def update_weights(
        self, version: WeightVersion, buckets: Iterable[Bucket], *, recompute: bool
    ) -> None:
        tensors = list(unflatten(buckets, lambda name: None))
        await super().update_weights(version, [], recompute=recompute)
        self.loaded += [float(tensor) for name, tensor in tensors if name == "scalar"]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ShowsItsWeights:
    engine = ShowsItsWeights()
    monkeypatch.setattr(type(ENGINES), "get", lambda *_: lambda *_: engine)
    monkeypatch.setattr(actors, "log_to_run_directory", lambda *_: None)
    return engine


def test_a_version_that_is_published_again_is_pulled_again(engine: ShowsItsWeights, tmp_path: Path) -> None:
    """The learner dies after version 11 and is restored to version 10 while this worker is idle."""
    spec = run_spec(compose("grpo", ["tracking=none", "rollout.threads=0"]), "run", 1, tmp_path)
    lost, restored = SharedMemoryChannel(), SharedMemoryChannel()
    first = PublishedWeights(11, WeightRef(lost.publish(11, source(1.0))), sequence=0)
    second = PublishedWeights(11, WeightRef(restored.publish(11, source(2.0))), sequence=1)

    async def main() -> None:
        worker = actors.RolloutActor(spec, ActorIdentity("rollout-0", Role.ROLLOUT, 0, ()))
        await worker.ready()
        for key in range(2):
            await worker.generate(key, REQUEST, first)
        assert engine.loaded == [1.0]
        block, _ = await worker.generate(2, REQUEST, second)
        assert engine.loaded == [1.0, 2.0]
        assert set(block.versions.tolist()) == {11}

    asyncio.run(main())
    lost.close()
    restored.close()
