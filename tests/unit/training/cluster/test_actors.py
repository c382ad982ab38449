"""The rollout worker without Ray: which weights it samples with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from orchestrator.config.compose import compose
from orchestrator.launch.assembly import run_spec
from orchestrator.training.cluster import actors
from orchestrator.training.cluster.run_spec import ActorIdentity
from orchestrator.training.records import Prompt, SamplingParams, WeightVersion
from orchestrator.training.rollouts.engine import NamedTensor
from orchestrator.training.rollouts.engines import ENGINES
from orchestrator.training.rollouts.scripted import ScriptedEngine
from orchestrator.training.stages import RolloutRequest
from orchestrator.training.usage import Role
from orchestrator.training.weights.shared_memory import SharedMemoryChannel
from tests.contracts.weight_channel_contract import source

REQUEST = RolloutRequest(((0, Prompt("p", "1+2=", {})),), 11, 2, SamplingParams(1.0, 1.0, 4, 0))


class ShowsItsWeights(ScriptedEngine):
    """Keeps one number of the weights that it loads."""

    def __init__(self) -> None:
        super().__init__(context=32)
        self.loaded: list[float] = []

    def load_weights(self, version: WeightVersion, tensors: Iterable[NamedTensor]) -> None:
        super().load_weights(version, [])
        self.loaded += [float(tensor) for name, tensor in tensors if name == "scalar"]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ShowsItsWeights:
    engine = ShowsItsWeights()
    monkeypatch.setattr(type(ENGINES), "get", lambda *_: lambda *_: engine)
    monkeypatch.setattr(actors, "log_to_run_directory", lambda *_: None)
    return engine


def test_a_version_that_is_published_again_is_pulled_again(engine: ShowsItsWeights, tmp_path: Path) -> None:
    """The learner dies after version 11 and is restored to version 10 while this worker is idle."""
    parts = run_spec(compose("grpo", ["tracking=none", "rollout.threads=0"]), "run", 1, tmp_path)
    worker = actors.RolloutActor(parts, ActorIdentity("rollout-0", Role.ROLLOUT, 0, ()))
    worker.ready()
    lost, restored = SharedMemoryChannel(), SharedMemoryChannel()
    first = lost.publish(11, source(1.0))
    for _ in range(2):
        worker.generate(REQUEST, 11, first)
    assert engine.loaded == [1.0]
    second = restored.publish(11, source(2.0))
    block, _ = worker.generate(REQUEST, 11, second)
    assert engine.loaded == [1.0, 2.0]
    assert set(block.versions.tolist()) == {11}
    lost.close()
    restored.close()
