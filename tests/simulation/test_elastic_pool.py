"""Rollout workers join and leave during simulated runs, which the auditor checks afterwards."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import StateError
from orchestrator.training.events import WorkerJoined, WorkerLeft, WorkerLost
from orchestrator.training.simulation.run import Simulation, SimulationSettings, simulate
from orchestrator.training.simulation.stages import Faults, Timing
from orchestrator.training.supervision.elastic import RETRY_SECONDS, WorkerState
from orchestrator.training.usage import Activity, MemorySink, SpanRecorded
from tests.simulation.audited import audited, messages, run_recorded
from tests.simulation.expected import assert_complete

BASE = SimulationSettings(
    seed=3,
    steps=30,
    max_staleness=2,
    prompts_per_step=8,
    rollout_workers=1,
    checkpoint_every=10,
    timing=Timing(restart=2.0, portions=4),
)
ASKED = "requested"

Meanwhile = Callable[[Simulation], Awaitable[None]]


def run(settings: SimulationSettings, directory: Path, meanwhile: Meanwhile) -> Simulation:
    """Run to the end. Nothing may be lost, and the account must close."""
    simulation = run_recorded(settings, directory, meanwhile=meanwhile)
    assert simulation is not None
    assert_complete(simulation, settings, directory)
    assert messages(audited(directory)) == []
    return simulation


def told(simulation: Simulation) -> list[str]:
    kinds = (WorkerJoined, WorkerLeft, WorkerLost)
    return [f"{event.kind} {event.worker}" for event in simulation.trace.events if isinstance(event, kinds)]


def states(simulation: Simulation) -> dict[str, WorkerState]:
    return {status.name: status.state for status in simulation.elastic.status().workers}


def test_workers_that_join_catch_up_first_and_share_the_work(tmp_path: Path) -> None:
    async def add(simulation: Simulation) -> None:
        await asyncio.sleep(3.0)
        simulation.elastic.grow(2, ASKED)
        assert simulation.elastic.wanted == 3
        assert states(simulation)["rollout-2"] is WorkerState.WAITING
        await asyncio.sleep(1.0)
        assert states(simulation)["rollout-2"] is WorkerState.STARTING
        assert simulation.rollouts.width == 1
        await asyncio.sleep(2.0)
        assert set(states(simulation).values()) == {WorkerState.RUNNING}
        assert simulation.rollouts.width == 3
        worker = simulation.slots.workers["rollout-1"]
        assert worker.loaded, "it holds weights before its first request"
        assert worker.loaded[0] > 0, "the newest ones, not those of the beginning"

    simulation = run(BASE, tmp_path, add)
    assert sorted(told(simulation)) == ["worker_joined rollout-1", "worker_joined rollout-2"]
    (first, second) = (event for event in simulation.trace.events if isinstance(event, WorkerJoined))
    assert (first.workers, second.workers) == (2, 3)
    assert first.message == f"{first.worker} joined, there are 2 rollout workers now: requested"
    for worker in simulation.slots.workers.values():
        assert len(worker.loaded) > 5, "it got requests at many versions"


def test_a_worker_that_leaves_completes_its_requests_and_gets_no_more(tmp_path: Path) -> None:
    async def remove(simulation: Simulation) -> None:
        await asyncio.sleep(10.0)
        assert simulation.rollouts.width == 4
        simulation.elastic.shrink(2, ASKED)
        assert simulation.rollouts.width == 4  # until the pool has noticed
        await asyncio.sleep(0.01)
        assert (simulation.rollouts.width, simulation.elastic.wanted) == (2, 2)
        assert {name for name, state in states(simulation).items() if state is WorkerState.LEAVING} == {
            "rollout-2",
            "rollout-3",
        }
        await asyncio.sleep(5.0)
        assert sorted(states(simulation)) == ["rollout-0", "rollout-1"]

    sink = MemorySink()
    settings = replace(BASE, elastic_workers=3)
    simulation = simulate(settings, tmp_path, meanwhile=remove, sink=sink)
    assert_complete(simulation, settings, tmp_path)
    assert sorted(told(simulation)[3:]) == ["worker_left rollout-2", "worker_left rollout-3"]
    assert not any(event.abandoned for event in simulation.trace.events if isinstance(event, WorkerLeft))
    spans = [event for event in sink.events if isinstance(event, SpanRecorded)]
    for name, since, until in simulation.slots.leases:
        used = [span for span in spans if span.actor == name and span.activity is Activity.GENERATE]
        assert all(since <= span.start_ns / 1e9 and span.end_ns / 1e9 <= until + 1e-9 for span in used)
        if name in ("rollout-2", "rollout-3"):
            assert 10.0 < until < 15.0, "the slot is given back when the worker has left"


@pytest.mark.parametrize("push", [False, True])
def test_the_groups_of_a_worker_that_leaves_at_once_go_to_others(push: bool, tmp_path: Path) -> None:
    async def remove(simulation: Simulation) -> None:
        await asyncio.sleep(10.5)
        simulation.elastic.shrink(2, ASKED, at_once=True)
        await asyncio.sleep(0.01)
        assert sorted(states(simulation)) == ["rollout-0", "rollout-1"]

    simulation = run(replace(BASE, elastic_workers=3, push=push), tmp_path, remove)
    left = [event for event in simulation.trace.events if isinstance(event, WorkerLeft)]
    assert [event.abandoned for event in left] == [True, True]
    assert left[-1].message == "rollout-2 left, there are 2 rollout workers now: requested"
    assert simulation.rollouts.restarts == 0, "nothing was lost"


def test_the_auditor_knows_that_tokens_of_a_worker_that_left_at_once_may_not_have_arrived(
    tmp_path: Path,
) -> None:
    async def remove(simulation: Simulation) -> None:
        await asyncio.sleep(10.0)
        simulation.elastic.shrink(1, ASKED, at_once=True)
        simulation.elastic.shrink(1, ASKED)

    def sampled_in_vain(worker: str) -> Sequence[str]:
        span = {
            "type": "span_recorded",
            "role": "rollout",
            "activity": "generate",
            "actor": worker,
            "start_ns": 1,
            "end_ns": 2,
            "step": 3,
            "tokens": 100_000,
        }
        (tmp_path / "ledger" / "2-more.jsonl").write_text(json.dumps(span) + "\n")
        return messages(audited(tmp_path))

    run(replace(BASE, elastic_workers=2), tmp_path, remove)
    assert sampled_in_vain("rollout-2") == []
    (violation,) = sampled_in_vain("rollout-1")
    assert "none was given up" in violation


@pytest.mark.parametrize("push", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
def test_a_worker_is_removed_while_it_loads_weights(at_once: bool, push: bool, tmp_path: Path) -> None:
    caught: list[str] = []

    async def remove(simulation: Simulation) -> None:
        await asyncio.sleep(6.0)
        worker = simulation.slots.workers["rollout-1"]
        while not (before := worker.loading):
            await asyncio.sleep(0.01)
        simulation.elastic.shrink(1, ASKED, at_once=at_once)
        caught.append(f"loading version {before}")

    simulation = run(replace(BASE, elastic_workers=1, push=push, load_seconds=0.4), tmp_path, remove)
    assert len(caught) == 1
    assert told(simulation) == ["worker_joined rollout-1", "worker_left rollout-1"]


def test_the_last_allowed_worker_cannot_be_removed(tmp_path: Path) -> None:
    async def remove(simulation: Simulation) -> None:
        await asyncio.sleep(5.0)
        with pytest.raises(StateError) as refused:
            simulation.elastic.shrink(2, ASKED)
        assert str(refused.value) == (
            "2 of 3 rollout workers cannot leave: at least 2 must stay (rollout.min_workers)."
        )
        assert simulation.elastic.wanted == 3
        simulation.elastic.shrink(1, ASKED)
        with pytest.raises(StateError):
            simulation.elastic.shrink(1, ASKED)

    simulation = run(replace(BASE, rollout_workers=2, elastic_workers=1), tmp_path, remove)
    assert told(simulation) == ["worker_joined rollout-2", "worker_left rollout-2"]


def test_workers_that_have_not_joined_yet_leave_first(tmp_path: Path) -> None:
    async def change(simulation: Simulation) -> None:
        simulation.elastic.grow(2, ASKED)
        await asyncio.sleep(5.0)
        assert states(simulation)["rollout-1"] is WorkerState.RUNNING
        assert states(simulation)["rollout-2"] is WorkerState.WAITING, "the cluster has one slot only"
        simulation.elastic.grow(1, ASKED)
        simulation.elastic.shrink(2, ASKED)
        await asyncio.sleep(0.01)
        assert sorted(states(simulation)) == ["rollout-0", "rollout-1"]

    simulation = run(replace(BASE, elastic_slots=1), tmp_path, change)
    assert told(simulation)[0] == "worker_joined rollout-1"
    assert sorted(told(simulation)[1:]) == ["worker_left rollout-2", "worker_left rollout-3"]


def test_a_worker_that_fails_to_start_is_tried_again_within_its_budget(tmp_path: Path) -> None:
    async def add(simulation: Simulation) -> None:
        simulation.slots.failing_starts = {"rollout-1": 2, "rollout-2": 100}
        simulation.elastic.grow(2, ASKED)
        await asyncio.sleep(1.0)
        assert states(simulation)["rollout-1"] is WorkerState.STARTING
        await asyncio.sleep(2.0)
        status = simulation.elastic.status().workers[1]
        assert (status.state, status.detail) == (WorkerState.WAITING, "died while starting")

    simulation = run(replace(BASE, steps=40, max_restarts=2), tmp_path, add)
    events = told(simulation)
    assert events.count("worker_lost rollout-1") == 2
    assert events.count("worker_joined rollout-1") == 1
    assert events.count("worker_lost rollout-2") == 3
    assert events.count("worker_left rollout-2") == 1
    (left,) = (event for event in simulation.trace.events if isinstance(event, WorkerLeft))
    assert left.reason == (
        "losses of rollout-2: 3 failures exceed the budget of 2; the last one: rollout-2 was lost: died"
        " while starting"
    )
    assert simulation.rollouts.restarts == 0, "the budget of the permanent workers is untouched"


def test_the_pool_grows_back_when_the_cluster_has_a_slot_again(tmp_path: Path) -> None:
    """The loss of a node does not count against the budget, which is 0 here."""

    async def lose(simulation: Simulation) -> None:
        await asyncio.sleep(6.0)
        simulation.slots.lose_node("rollout-1")
        await asyncio.sleep(RETRY_SECONDS + 3.0)
        assert states(simulation)["rollout-1"] is WorkerState.WAITING
        assert (simulation.rollouts.width, simulation.elastic.wanted) == (1, 2)
        simulation.slots.free.release()
        await asyncio.sleep(4.0)
        assert (simulation.rollouts.width, simulation.elastic.wanted) == (2, 2)

    settings = replace(BASE, elastic_workers=1, elastic_slots=1, max_restarts=0)
    simulation = run(settings, tmp_path, lose)
    assert told(simulation) == [
        "worker_joined rollout-1",
        "worker_lost rollout-1",
        "worker_joined rollout-1",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("max_staleness", [0, 2])
def test_nothing_is_lost_while_workers_come_and_go_and_die(
    max_staleness: int, seed: int, tmp_path: Path
) -> None:
    async def churn(simulation: Simulation) -> None:
        for turn in range(12):
            await asyncio.sleep(1.7)
            elastic = simulation.elastic
            if (turn + seed) % 3 and elastic.wanted < 6:
                elastic.grow(1 + turn % 2, ASKED)
            elif elastic.wanted > elastic.min_workers:
                elastic.shrink(1, ASKED, at_once=turn % 2 == 0)

    settings = replace(
        BASE,
        seed=seed,
        max_staleness=max_staleness,
        elastic_workers=2,
        evaluate_every=5,
        push=seed % 2 == 0,
        faults=Faults(rollout_death=0.05, answer_lost=0.05, restart_failure=0.1),
    )
    simulation = run(settings, tmp_path, churn)
    assert "worker_left" in " ".join(told(simulation))


def test_the_end_of_a_run_gives_all_slots_back(tmp_path: Path) -> None:
    async def add(simulation: Simulation) -> None:
        simulation.elastic.grow(3, ASKED)

    simulation = run(replace(BASE, steps=10, elastic_slots=2), tmp_path, add)
    assert simulation.slots.free._value == 2  # pyright: ignore[reportPrivateUsage]
    assert not any(isinstance(event, WorkerLeft) for event in simulation.trace.events)
