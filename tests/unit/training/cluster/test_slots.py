"""How a run waits for missing slots."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from orchestrator.training.cluster import slots as module
from orchestrator.training.cluster.session import ClusterError
from orchestrator.training.cluster.slots import Slots
from orchestrator.training.simulation.virtual_time import VirtualClock, run_in_virtual_time
from orchestrator.training.waiting import Waits
from tests.support.composed import composed


class Cluster:
    """A cluster whose placement group loses its slots at `lost_at` and has them
    again at `back_at`, in seconds.
    """

    def __init__(self, lost_at: float, back_at: float | None, nodes_alive: int = 1) -> None:
        self.lost_at, self.back_at, self.nodes_alive = lost_at, back_at, nodes_alive

    def table(self, _: object) -> dict[str, Any]:
        now = asyncio.get_running_loop().time()
        missing = now >= self.lost_at and (self.back_at is None or now < self.back_at)
        return {"state": "RESCHEDULING" if missing else "CREATED", "bundles_to_node_id": {0: "node"}}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True}] * self.nodes_alive


@pytest.fixture
def run_on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Run a body with slots on a cluster. Returns the messages about what the run waited for."""

    async def at_once(function: Callable[..., Any], *arguments: object) -> Any:
        return function(*arguments)

    def run(
        cluster: Cluster, body: Callable[[Slots], Awaitable[None]], address: str | None = "auto"
    ) -> list[str]:
        monkeypatch.setattr(module, "placement_group_table", cluster.table)
        monkeypatch.setattr(module.ray, "nodes", cluster.nodes)
        monkeypatch.setattr(module.ray, "cluster_resources", lambda: {"CPU": 4.0})
        monkeypatch.setattr(module.ray, "available_resources", lambda: {"CPU": 0.5})
        monkeypatch.setattr(module.asyncio, "to_thread", at_once)
        config = composed("grpo", "tracking=none", "cluster.startup_timeout_seconds=60").cluster
        said: list[str] = []

        async def main() -> None:
            group: Any = None
            waits = Waits(lambda event: said.append(event.message), VirtualClock())
            slots = Slots(group, (("run/1-a/0.0",),), config.model_copy(update={"address": address}), waits)
            watch = slots.start(slots.watch())
            try:
                await body(slots)
            finally:
                watch.cancel()

        run_in_virtual_time(main())
        return said

    return run


def _takes(seconds: float) -> Callable[[Slots], Awaitable[None]]:
    async def body(slots: Slots) -> None:
        async def call() -> str:
            await asyncio.sleep(seconds)
            return "done"

        assert await slots.while_held(call()) == "done"

    return body


def test_nothing_is_reported_while_no_slot_is_missing(run_on: Callable[..., list[str]]) -> None:
    assert run_on(Cluster(lost_at=1000.0, back_at=None), _takes(100.0)) == []


def test_slots_that_come_back_are_waited_for_once_each(run_on: Callable[..., list[str]]) -> None:
    said = run_on(Cluster(lost_at=10.0, back_at=50.0), _takes(100.0))
    assert said[0].startswith(
        "waiting for slots of the cluster since 00:00:10 UTC: a node was lost, and for at most 60 s the run"
    )
    assert "0.5 of 4 CPUs free" in said[0]
    assert said[1:] == ["no longer waiting for slots of the cluster, after 40 s"]


def test_the_wait_for_slots_has_a_time_limit(run_on: Callable[..., list[str]]) -> None:
    async def body(slots: Slots) -> None:
        with pytest.raises(
            ClusterError, match=r"not replaced within 60 s \(cluster\.startup_timeout_seconds\)"
        ):
            await _takes(10_000.0)(slots)
        assert asyncio.get_running_loop().time() <= 10.0 + 60.0 + 2 * module.LOOK_EVERY_SECONDS
        with pytest.raises(ClusterError):  # later calls too
            await _takes(10_000.0)(slots)

    said = run_on(Cluster(lost_at=10.0, back_at=None), body)
    assert len(said) == 2
    assert said[1] == "no longer waiting for slots of the cluster, after 65 s"


def test_a_local_cluster_without_nodes_is_given_up_immediately(run_on: Callable[..., list[str]]) -> None:
    async def body(slots: Slots) -> None:
        with pytest.raises(ClusterError, match="The node of the local Ray died"):
            await _takes(10_000.0)(slots)
        assert asyncio.get_running_loop().time() <= 10.0 + module.LOOK_EVERY_SECONDS

    assert run_on(Cluster(lost_at=10.0, back_at=None, nodes_alive=0), body, None) == []


def test_errors_of_a_call_are_passed_on_unchanged(run_on: Callable[..., list[str]]) -> None:
    async def body(slots: Slots) -> None:
        async def fails() -> None:
            raise ValueError("its own")

        with pytest.raises(ValueError, match="its own"):
            await slots.while_held(fails())

    assert run_on(Cluster(lost_at=1000.0, back_at=None), body) == []


def test_a_failing_watch_task_ends_the_run(run_on: Callable[..., list[str]]) -> None:
    class Unreachable(Cluster):
        def table(self, _: object) -> dict[str, Any]:
            raise ConnectionError("the head of the cluster does not answer")

    async def body(slots: Slots) -> None:
        with pytest.raises(ConnectionError, match="does not answer"):
            await _takes(10_000.0)(slots)

    assert run_on(Unreachable(lost_at=1000.0, back_at=None), body) == []


def test_a_heartbeat_that_cannot_be_written_ends_the_run(run_on: Callable[..., list[str]]) -> None:
    async def beat() -> None:
        await asyncio.sleep(20.0)
        raise OSError("the spool is gone")

    async def body(slots: Slots) -> None:
        beating = slots.start(beat())
        with pytest.raises(OSError, match="the spool is gone"):
            await _takes(100.0)(slots)
        assert beating.done()

    run_on(Cluster(lost_at=1000.0, back_at=None), body)
