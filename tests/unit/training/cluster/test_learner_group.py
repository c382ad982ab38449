"""The setup that every learner rank receives."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from orchestrator.errors import ConfigError, WorkerLostError
from orchestrator.launch.assembly import placement_of, run_spec
from orchestrator.training.checkpoints.checkpointer import Checkpointer, LoopState
from orchestrator.training.cluster import learner_group
from orchestrator.training.cluster.actors import RankSetup
from orchestrator.training.cluster.learner_group import RayLearnerGroup
from tests.support.composed import composed


class FakeRank:
    """An actor handle that records its calls and returns `()`, or raises."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[object, ...], str | None]] = []
        self.errors: dict[str, Exception] = {}

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)
        return _Method(self, method, None)

    def arguments(self, method: str) -> list[tuple[object, ...]]:
        return [arguments for name, arguments, _ in self.calls if name == method]


class _Method:
    def __init__(self, rank: FakeRank, name: str, group: str | None) -> None:
        self._rank, self._name, self._group = rank, name, group

    def options(self, concurrency_group: str | None = None) -> _Method:
        return _Method(self._rank, self._name, concurrency_group)

    def remote(self, *arguments: object) -> Any:
        self._rank.calls.append((self._name, arguments, self._group))
        future: Future[Any] = Future()
        if self._name in self._rank.errors:
            future.set_exception(self._rank.errors.pop(self._name))
        else:
            future.set_result(((), ()) if self._name == "publish" else ())
        return SimpleNamespace(future=lambda: future)


class FakeSlots:
    """Slots on these nodes, which are never lost."""

    def __init__(self, *nodes: str) -> None:
        self.held = nodes

    def nodes(self) -> tuple[str, ...]:
        return self.held

    async def while_held(self, call: Any) -> Any:
        return await call


class Group:
    """Two ranks. Each incarnation has new handles."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nodes: tuple[str, ...], *overrides: str
    ) -> None:
        config = composed("grpo", "learner.world_size=2", "rollout.workers=2", "tracking=none", *overrides)
        self.started: list[list[FakeRank]] = []
        monkeypatch.setattr(RayLearnerGroup, "_start", lambda _: self._fresh())
        monkeypatch.setattr(learner_group.ray, "kill", lambda _: None)
        self.slots: Any = FakeSlots(*nodes)
        spec = run_spec(config, "run", 1, tmp_path)
        self.ranks = RayLearnerGroup(placement_of(config), self.slots, spec, 1.0)

    def _fresh(self) -> list[FakeRank]:
        self.started.append([FakeRank(), FakeRank()])
        return self.started[-1]

    def setups(self) -> list[RankSetup]:
        found: list[Any] = [rank.arguments("setup")[0][0] for rank in self.started[-1]]
        return found


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Group:
    return Group(monkeypatch, tmp_path, ("a", "a"))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_every_rank_records_a_checkpoint_under_its_step(
    asynchronous: bool, group: Group, tmp_path: Path
) -> None:
    async def main() -> None:
        checkpoints = Checkpointer(tmp_path, keep=1, asynchronous=asynchronous)
        await checkpoints.save(group.ranks, LoopState(40, 80, (), {}))
        await checkpoints.wait_for_pending()

    asyncio.run(main())
    method = "snapshot" if asynchronous else "save"
    assert [rank.arguments(method)[0][-1] for rank in group.started[0]] == [40, 40]
    groups = [group for rank in group.started[0] for name, _, group in rank.calls if name == "write"]
    assert groups == (["disk", "disk"] if asynchronous else [])


def test_ranks_of_one_node_share_a_secret_that_changes_with_every_incarnation(group: Group) -> None:
    asyncio.run(group.ranks.start())
    first, second = group.setups()
    assert (first.rank, second.rank, first.world_size) == (0, 1, 2)
    assert first.rank_0 is None
    assert second.rank_0 is group.started[0][0]
    assert first.rendezvous is not None
    assert first.rendezvous == second.rendezvous
    assert len(first.rendezvous.secret) == 32
    assert first.rendezvous.secret.hex() not in repr(first)
    asyncio.run(group.ranks.rebuild())
    again = group.setups()[0].rendezvous
    assert again is not None
    assert again.secret != first.rendezvous.secret
    assert again.name != first.rendezvous.name


def test_the_channel_depends_on_the_nodes_of_the_slots(group: Group) -> None:
    asyncio.run(group.ranks.start())
    assert group.setups()[0].weights.channel == "shared_memory"
    group.slots.held = ("b", "c")
    asyncio.run(group.ranks.rebuild())
    moved = group.setups()[0]
    assert (moved.weights.channel, moved.one_node, moved.rendezvous) == ("object_store", False, None)


def test_shared_memory_is_rejected_after_a_node_loss_separates_the_actors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    group = Group(monkeypatch, tmp_path, ("a", "b"), "weights.channel=shared_memory")
    with pytest.raises(ConfigError, match=r"weights\.channel"):
        asyncio.run(group.ranks.start())


def test_a_rank_lost_at_the_start_is_reported_by_the_next_call_and_rebuilt(group: Group) -> None:
    """So that the loss counts against the loop's own budget."""
    group.started[0][1].errors["setup"] = ActorDiedError()

    async def main() -> None:
        await group.ranks.start()
        for _ in range(2):
            with pytest.raises(WorkerLostError, match="learner-1 was lost"):
                await group.ranks.publish(0)
        await group.ranks.rebuild()
        assert (await group.ranks.publish(0)).version == 0

    asyncio.run(main())
    assert len(group.started) == 2


@pytest.mark.slow
def test_a_deliberate_error_of_a_rank_ends_the_start(group: Group) -> None:
    from ray.exceptions import RayTaskError

    refused = ConfigError("learner.backend", "nccl", "gloo", "no GPU")
    group.started[0][0].errors["setup"] = RayTaskError("setup", "text", refused).as_instanceof_cause()
    with pytest.raises(ConfigError) as caught:
        asyncio.run(group.ranks.start())
    assert caught.value is refused
