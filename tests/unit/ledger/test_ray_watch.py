"""Watching a Ray cluster: every lease has the times that Ray reports, whenever and
however often snapshots are taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from orchestrator.ledger.booking import BookedLease, Ending, book
from orchestrator.ledger.events import Event, LeaseOpened, RunDeclared, event_to_json
from orchestrator.ledger.labels import Labels
from orchestrator.ledger.ray_state import RayActor, RayBundle, RayGroup, RayJob, RaySnapshot
from orchestrator.ledger.ray_watch import Watch, WatchNames

S = 10**9
NAMES = WatchNames("h100", "cpu-slot", Labels(team="shared"))
JOBS = {
    "01": RayJob("01", "raysubmit_1", "python train.py", {"team": "nlp", "purpose": "ablation"}),
    "02": RayJob("02", "", "python serve.py", {}),
}


def actor(
    name: str,
    start: int,
    end: int | None = None,
    gpus: float = 0,
    cpus: float = 0,
    group: str = "",
    job: str = "01",
    node: str = "n1",
) -> RayActor:
    ended = None if end is None else end * S
    return RayActor(name, 0, "Worker", job, node, group, gpus, cpus, start * S, ended, False)


def group(start: int, *bundles: RayBundle, held: bool = True) -> RayGroup:
    return RayGroup("pg", "01", bundles, start * S, held)


def snapshot(
    *actors: RayActor, groups: Iterable[RayGroup] = (), jobs: dict[str, RayJob] | None = None
) -> RaySnapshot:
    return RaySnapshot("head", actors, tuple(groups), jobs or JOBS)


def watched(*looks: tuple[int, RaySnapshot], watch: Watch | None = None) -> list[Event]:
    watching = watch or Watch(NAMES)
    return [event for at, seen in looks for event in watching.observe(seen, at * S)]


def booked(events: list[Event], at: int) -> list[BookedLease]:
    found, rejected = book(events, at * S)
    assert rejected == []
    assert all(sum(piece.ns for piece in lease.slices) == lease.ns for lease in found)
    return found


def extents(events: list[Event], at: int) -> list[tuple[int, int, str]]:
    return [(lease.start_ns // S, lease.end_ns // S, lease.ending) for lease in booked(events, at)]


def by_activity(lease: BookedLease) -> dict[str, int]:
    sums: dict[str, int] = {}
    for piece in lease.slices:
        sums[piece.activity] = sums.get(piece.activity, 0) + piece.ns // S
    return sums


def test_an_actor_holds_its_gpus_from_its_start_to_its_end() -> None:
    alive = snapshot(actor("a", 10, gpus=2))
    events = watched((20, alive), (30, alive), (40, snapshot(actor("a", 10, 35, gpus=2))))
    assert extents(events, 1000) == [(10, 35, Ending.RELEASED)] * 2
    assert [by_activity(lease) for lease in booked(events, 1000)] == [{"run": 25}] * 2
    opened = [event for event in events if isinstance(event, LeaseOpened)]
    assert {(event.resource, event.sku, event.node) for event in opened} == {("gpu", "h100", "n1")}


def test_time_before_the_first_snapshot_is_accounted_for() -> None:
    events = watched((100, snapshot(actor("a", 10, 60, gpus=1), actor("b", 50, cpus=2, gpus=0))))
    assert extents(events, 100) == [
        (10, 60, Ending.RELEASED),
        (50, 100, Ending.OPEN),
        (50, 100, Ending.OPEN),
    ]


def test_an_actor_without_resources_holds_nothing() -> None:
    assert watched((20, snapshot(actor("a", 10), actor("b", 10, cpus=0.5)))) == []


def test_a_group_holds_its_bundles_and_its_actors_use_them() -> None:
    reserved = group(10, RayBundle(0, "n1", 2, 8), RayBundle(1, "n2", 1, 0), RayBundle(2, "n2", 0, 1))
    member = actor("a", 20, gpus=1, cpus=4, group="pg")
    events = watched(
        (30, snapshot(member, groups=[reserved])),
        (50, snapshot(replace(member, end_ns=45 * S), groups=[reserved])),
        (60, snapshot(groups=[replace(reserved, held=False)])),
    )
    leases = booked(events, 1000)
    assert [(lease.opened.lease_id.rpartition("/")[2], lease.opened.resource) for lease in leases] == [
        ("0.0", "gpu"),
        ("0.1", "gpu"),
        ("1.0", "gpu"),
        ("2.0", "cpu"),
    ]
    assert {(lease.start_ns // S, lease.end_ns // S, lease.ending) for lease in leases} == {
        (10, 60, Ending.RELEASED)
    }
    # The last sign of the actor's work is the look before it ended.
    assert [by_activity(lease) for lease in leases] == [{"idle": 40, "run": 10}, *[{"idle": 50}] * 3]


def test_actors_with_fractions_of_a_gpu_share_one() -> None:
    times = (("a", 0, 90), ("b", 30, 90), ("c", 60, 120))
    ended = [actor(name, start, end, gpus=0.5) for name, start, end in times]
    alive = [replace(one, end_ns=None) for one in ended]
    events = watched(
        (40, snapshot(*alive[:2])),
        (80, snapshot(*alive)),
        (200, snapshot(*ended)),
    )
    assert extents(events, 1000) == [(0, 90, Ending.RELEASED), (60, 120, Ending.RELEASED)]
    assert [by_activity(lease) for lease in booked(events, 1000)] == [{"run": 90}, {"run": 60}]


def test_a_shared_gpu_is_charged_to_the_jobs_that_used_it() -> None:
    shared = snapshot(actor("a", 0, 60, gpus=0.25), actor("b", 20, 60, gpus=0.25, job="02"))
    [lease] = booked(watched((100, shared)), 1000)
    share: dict[str, int] = {}
    for piece in lease.slices:
        share[piece.run_id] = share.get(piece.run_id, 0) + piece.ns // S
    assert share == {"ray-head/raysubmit_1": 40, "ray-head/02": 20}


def test_a_job_is_a_run_with_the_labels_of_its_metadata() -> None:
    seen = snapshot(actor("a", 0, gpus=1), actor("b", 0, gpus=1, job="02"))
    declared = {
        event.run_id: event for event in watched((9, seen), (10, seen)) if isinstance(event, RunDeclared)
    }
    labels = {name: (event.team, event.purpose, event.job) for name, event in declared.items()}
    assert labels == {
        "ray-head/raysubmit_1": ("nlp", "ablation", "python train.py"),
        "ray-head/02": ("shared", "unstated", "python serve.py"),
    }


@pytest.mark.parametrize(
    ("entrypoint", "counted"),
    [
        ("orchestrator run grpo", False),
        (".venv/bin/orchestrator resume x", False),
        ("python orchestrator.py", True),
        ("my-orchestrator run", True),
    ],
)
def test_jobs_of_this_project_are_skipped(entrypoint: str, counted: bool) -> None:
    jobs = {"01": RayJob("01", "", entrypoint, {})}
    seen = snapshot(actor("a", 0, gpus=1), groups=[group(0, RayBundle(0, "n1", 1, 0))], jobs=jobs)
    assert bool(watched((9, seen))) is counted


def test_a_restarted_watcher_emits_no_event_twice() -> None:
    seen = snapshot(actor("a", 10, gpus=1), groups=[group(10, RayBundle(0, "n1", 1, 0))])
    first = watched((20, seen), (30, seen))
    second = watched((200, seen), watch=Watch(NAMES, first))
    fresh = watched((200, seen))
    assert not {type(event) for event in second} & {LeaseOpened, RunDeclared}
    # A watcher that lost its spool emits the same events again, which the journal takes once.
    known = {event.event_id: event_to_json(event) for event in first}
    again = [event for event in fresh if event.event_id in known]
    assert len(again) == 3
    assert all(known[event.event_id] == event_to_json(event) for event in again)
    assert extents([*first, *second], 200) == [(10, 200, Ending.OPEN)] * 2


def test_a_group_that_disappeared_unwatched_is_lost_since_it_was_last_seen() -> None:
    first = watched((20, snapshot(groups=[group(10, RayBundle(0, "n1", 1, 0))])))
    away = watched((500, snapshot(groups=[group(10, held=False)])), watch=Watch(NAMES, first))
    [lease] = booked([*first, *away], 1000)
    assert (lease.end_ns // S, lease.ending) == (500, Ending.LOST)
    assert by_activity(lease) == {"idle": 10, "lost": 480}


def test_an_actor_that_was_restarted_holds_a_lease_each_time() -> None:
    before, after = actor("a", 10, gpus=1), replace(actor("a", 50, gpus=1), restarts=1)
    events = watched((20, snapshot(before)), (60, snapshot(after)))
    assert extents(events, 60) == [(10, 50, Ending.LOST), (50, 60, Ending.OPEN)]
    assert [by_activity(lease) for lease in booked(events, 60)] == [{"run": 10, "lost": 30}, {"run": 10}]


def test_an_actor_that_restarted_and_died_between_snapshots_has_consecutive_leases() -> None:
    """For a dead actor, Ray only reports when its first incarnation started."""
    before, after = actor("a", 10, gpus=2), replace(actor("a", 10, 55, gpus=2), restarts=1, crashed=True)
    events = watched((20, snapshot(before)), (60, snapshot(after)))
    assert extents(events, 60) == [(10, 20, Ending.LOST)] * 2 + [(20, 55, Ending.LOST)] * 2
    assert extents(watched((60, snapshot(after))), 60) == [(10, 55, Ending.LOST)] * 2


def test_the_work_of_a_crashed_actor_counts_and_its_lease_is_lost() -> None:
    seen = snapshot(replace(actor("a", 10, 40, gpus=1), crashed=True))
    [lease] = booked(watched((60, seen)), 60)
    assert (lease.end_ns // S, lease.ending, by_activity(lease)) == (40, Ending.LOST, {"run": 30})
