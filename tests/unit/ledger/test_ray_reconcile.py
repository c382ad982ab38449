"""Compares Ray's events with the ledger. Recordings of a real cluster and its watcher match; in a synthetic
cluster, exactly the injected discrepancies are found.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger.booking import BookingPolicy
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.events import Event, LeaseClosed, LeaseOpened, SpanRecorded, event_from_json
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.ray_events import Death, Recording, read_ray_events
from orchestrator.ledger.ray_findings import RayDiscrepancy, RayReconciliation
from orchestrator.ledger.ray_holders import leases_to_compare
from orchestrator.ledger.ray_reconcile import reconcile_ray

RECORDINGS = {
    "exported": Path(__file__).parent / "ray_recordings",
    "posted": Path(__file__).parents[3] / "docs" / "examples" / "ray",
}
POLICY = BookingPolicy(grace_ns=900 * 10**9, skew_ns=10**9)
S = 10**9
START = 1_795_000_000
"""Seconds: when the synthetic cluster started."""
CLUSTER, HEAD = "ab" * 6, "ab" * 28
OTHER_NODE = "cd" * 28


def text_of(hexadecimal: str) -> str:
    """An id as in protobuf's JSON."""
    return base64.b64encode(bytes.fromhex(hexadecimal)).decode()


def time_of(ns: int) -> str:
    from datetime import UTC, datetime

    return f"{datetime.fromtimestamp(ns // S, UTC):%Y-%m-%dT%H:%M:%S}.{ns % S:09d}Z"


CRASH = ("WORKER_DIED", "its worker process has died. Worker exit type: SYSTEM_ERROR")
KILLED = ("RAY_KILL", "it was killed by `ray.kill`.")


@dataclass
class Actor:
    """An actor of the synthetic cluster, alive from `start` to `end` (ns), and its events in the ledger."""

    number: int
    start: int
    end: int | None
    gpus: float = 1.0
    group: str = ""
    name: str = ""
    death: tuple[str, str] = KILLED
    node: str = HEAD

    @property
    def actor_id(self) -> str:
        return f"{self.number:024x}01000000"

    @property
    def label(self) -> str:
        return f"{self.name or 'Worker'}-{self.actor_id[:8]}"

    def posted(self) -> list[dict[str, Any]]:
        """Its events in the format that Ray posts."""
        actor_id = text_of(self.actor_id)
        definition = {
            "actorId": actor_id,
            "jobId": text_of("01000000"),
            "name": self.name,
            "className": "Worker",
            "placementGroupId": text_of(self.group),
            "requiredResources": {f"GPU_group_{self.group}" if self.group else "GPU": self.gpus},
        }
        changes: list[dict[str, Any]] = [
            {"state": "DEPENDENCIES_UNREADY", "timestamp": time_of(self.start - S)},
            {"state": "PENDING_CREATION", "timestamp": time_of(self.start - S)},
            {"state": "ALIVE", "timestamp": time_of(self.start), "nodeId": text_of(self.node)},
        ]
        if self.end is not None:
            reason, text = self.death
            cause = {"actorDiedErrorContext": {"reason": reason, "errorMessage": text}}
            changes.append({"state": "DEAD", "timestamp": time_of(self.end), "deathCause": cause})
        lifecycle = [{"actorId": actor_id, "stateTransitions": [change]} for change in changes]
        return [
            event("ACTOR_DEFINITION_EVENT", actorDefinitionEvent=definition),
            *(event("ACTOR_LIFECYCLE_EVENT", actorLifecycleEvent=one) for one in lifecycle),
        ]


def event(kind: str, **fields: Any) -> dict[str, Any]:
    content = json.dumps(fields, sort_keys=True)
    return {"eventId": f"{kind}{content}", "eventType": kind, **fields}


def lease(
    lease_id: str, start: int, end: int | None, group: str = "", reason: str = "released", node: str = HEAD
) -> list[Event]:
    opened = LeaseOpened(f"o-{lease_id}", start, lease_id, "r", 1, "gpu", "h100", node, group, 0)
    if end is None:
        return [opened]
    return [opened, LeaseClosed(f"c-{lease_id}", end, lease_id, reason)]


def work(lease_id: str, actor: str, start: int, end: int) -> SpanRecorded:
    return SpanRecorded(f"s-{lease_id}-{actor}-{start}", lease_id, actor, "actor", "run", start, end, 0, 0)


@dataclass
class World:
    """A cluster and a ledger that match: actors that `cost watch` leased, and a run of this project with
    actor slots in a placement group, one of which had two incarnations.
    """

    random_: random.Random
    actors: list[Actor] = field(default_factory=list[Actor])
    events: dict[int, list[Event]] = field(default_factory=dict[int, list[Event]])
    """Events of the ledger by actor; those of the run have the key -1."""

    def __post_init__(self) -> None:
        for number in range(13):
            start = (START + self.random_.randrange(1000)) * S + self.random_.randrange(S)
            end = None if number == 12 else start + self.random_.randrange(200, 3000) * S
            self.actors.append(actor := Actor(number, start, end))
            self.book(actor)
        group = f"{77:028x}01000000"
        stem, first, last = f"grpo-1/1-{group[:12]}", START * S, (START + 5000) * S
        run = [*lease(f"{stem}/0.0", first, last, group), *lease(f"{stem}/1.0", first, last, group)]
        for number, actor_slot, incarnation, slot, start, end in (
            (20, "rollout-0", 0, 0, first + 5 * S, last),
            (21, "learner-0", 0, 1, first + 6 * S, first + 1000 * S),
            (22, "learner-0", 1, 1, first + 1010 * S, last),
        ):
            name = f"{stem}/{actor_slot}/{incarnation}"
            self.actors.append(Actor(number, start, end, group=group, name=name))
            # An actor loads before Ray calls it alive.
            run += [
                work(f"{stem}/{slot}.0", actor_slot, at, at + 9 * S)
                for at in range(start - S, end - 10 * S, 50 * S)
            ]
        self.events[-1] = run

    def book(self, actor: Actor) -> None:
        """The events that `cost watch` emits for an actor."""
        lease_id = f"{CLUSTER}/{actor.actor_id}/0.0"
        end = actor.end or (START + 6000) * S
        self.events[actor.number] = [
            *lease(lease_id, actor.start, actor.end),
            work(lease_id, actor.label, actor.start, end),
        ]

    def ledger_events(self) -> list[Event]:
        found = [event for events in self.events.values() for event in events]
        self.random_.shuffle(found)
        return found

    def recording(self, folder: Path) -> Recording:
        posted = [one for actor in self.actors for one in actor.posted()]
        self.random_.shuffle(posted)
        node = {"nodeId": text_of(HEAD), "nodeName": "head", "nodeIpAddress": "10.0.0.1"}
        posted.append(event("NODE_DEFINITION_EVENT", nodeDefinitionEvent=node))
        file = folder / "events.jsonl"
        file.write_text("".join(json.dumps(one) + "\n" for one in posted))
        return read_ray_events(file)

    def compare(self, folder: Path, tolerance: int = 2) -> RayReconciliation:
        now = (START + 6000) * S
        recording = self.recording(folder)
        return reconcile_ray(self.ledger_events(), recording, tolerance * S, now, POLICY, now)


Found = tuple[RayDiscrepancy, str, int]
"""Kind, actor id, nanoseconds."""
Seed = Callable[[World, Actor, random.Random], list[Found]]


def gap(random_: random.Random) -> int:
    return random_.randrange(3 * S, 100 * S)


def never_leased(world: World, actor: Actor, random_: random.Random) -> list[Found]:
    del world.events[actor.number]
    assert actor.end is not None
    return [(RayDiscrepancy.ACTOR_NOT_LEASED, actor.actor_id, actor.end - actor.start)]


def never_in_ray(world: World, actor: Actor, random_: random.Random) -> list[Found]:
    world.actors.remove(actor)
    assert actor.end is not None
    return [(RayDiscrepancy.ACTOR_NOT_IN_RAY, "", actor.end - actor.start)]


def leased_early(world: World, actor: Actor, random_: random.Random) -> list[Found]:
    """Requested a second before it was alive, which is how early a lease may begin."""
    early = gap(random_)
    moved(world, actor, start=actor.start - S - early)
    return [(RayDiscrepancy.LEASED_TOO_LONG, actor.actor_id, early)]


def leased_late(world: World, actor: Actor, random_: random.Random) -> list[Found]:
    late = gap(random_)
    moved(world, actor, start=actor.start + late)
    return [(RayDiscrepancy.LEASED_TOO_SHORT, actor.actor_id, late)]


def closed_late(world: World, actor: Actor, random_: random.Random) -> list[Found]:
    late = gap(random_)
    assert actor.end is not None
    moved(world, actor, end=actor.end + late)
    return [(RayDiscrepancy.LEASED_TOO_LONG, actor.actor_id, late)]


def closed_early(world: World, actor: Actor, random_: random.Random) -> list[Found]:
    early = gap(random_)
    assert actor.end is not None
    moved(world, actor, end=actor.end - early)
    return [(RayDiscrepancy.LEASED_TOO_SHORT, actor.actor_id, early)]


def never_closed(world: World, actor: Actor, random_: random.Random) -> list[Found]:
    """The lease ends as lost, 15 minutes after its last sign of life."""
    assert actor.end is not None
    opened, _, span = world.events[actor.number]
    world.events[actor.number] = [opened, span]
    now = (START + 6000) * S
    given_up = min(now, actor.end + POLICY.grace_ns)
    late = [(RayDiscrepancy.LEASED_TOO_LONG, actor.actor_id, given_up - actor.end)]
    lost = (RayDiscrepancy.DEATH_DIFFERS, actor.actor_id, POLICY.grace_ns)
    return [*late, lost] if now > actor.end + POLICY.grace_ns else late


def worked_dead(world: World, actor: Actor, random_: random.Random) -> list[Found]:
    """Two spans in the group after the actor of its slot had died, and before the slot was used again."""
    learner = next(one for one in world.actors if one.number == 21)
    assert learner.end is not None
    lease_id = f"{learner.name.rpartition('/learner')[0]}/1.0"
    world.events[-1] += [
        work(lease_id, "learner-0", learner.end - S, learner.end + 5 * S),
        work(lease_id, "learner-0", learner.end + 5 * S, learner.end + 6 * S),
    ]
    return [(RayDiscrepancy.WORK_OUTSIDE_LIFE, learner.actor_id, 6 * S)]


def worked_unknown(world: World, actor: Actor, random_: random.Random) -> list[Found]:
    lease_id = world.events[-1][0].lease_id  # type: ignore[union-attr]
    world.events[-1].append(work(lease_id, "rollout-7", (START + 100) * S, (START + 103) * S))
    return [(RayDiscrepancy.ACTOR_NOT_IN_RAY, "", 3 * S)]


def crashed(world: World, actor: Actor, random_: random.Random) -> list[Found]:
    actor.death = CRASH
    return [(RayDiscrepancy.DEATH_DIFFERS, actor.actor_id, 0)]


def lost(world: World, actor: Actor, random_: random.Random) -> list[Found]:
    """The last sign of life was 30 s before the end."""
    assert actor.end is not None
    lease_id = f"{CLUSTER}/{actor.actor_id}/0.0"
    world.events[actor.number] = [
        *lease(lease_id, actor.start, actor.end, reason="lost"),
        work(lease_id, actor.label, actor.start, actor.end - 30 * S),
    ]
    return [(RayDiscrepancy.DEATH_DIFFERS, actor.actor_id, 30 * S)]


def elsewhere(world: World, actor: Actor, random_: random.Random) -> list[Found]:
    lease_id = f"{CLUSTER}/{actor.actor_id}/0.0"
    span = world.events[actor.number][-1]
    world.events[actor.number] = [*lease(lease_id, actor.start, actor.end, node=OTHER_NODE), span]
    return [(RayDiscrepancy.NODE_DIFFERS, actor.actor_id, 0)]


SEEDS: tuple[Seed, ...] = (
    never_leased, never_in_ray, leased_early, leased_late, closed_late, closed_early,
    never_closed, worked_dead, worked_unknown, crashed, lost, elsewhere,
)  # fmt: skip


def moved(world: World, actor: Actor, start: int | None = None, end: int | None = None) -> None:
    """Move the actor's lease to other times, and truncate its work accordingly."""
    lease_id = f"{CLUSTER}/{actor.actor_id}/0.0"
    assert actor.end is not None
    first, last = start or actor.start, end or actor.end
    span = work(lease_id, actor.label, max(first, actor.start), min(last, actor.end))
    world.events[actor.number] = [*lease(lease_id, first, last), span]


def found_in(result: RayReconciliation) -> list[Found]:
    return sorted((one.kind, one.actor_id, one.ns) for one in result.findings)


@pytest.mark.parametrize("seed", range(5))
def test_matching_records_have_no_discrepancies(seed: int, tmp_path: Path) -> None:
    result = World(random.Random(seed)).compare(tmp_path, tolerance=0)
    assert result.findings == ()
    assert (result.lives, result.leases) == (16, 15)


@pytest.mark.parametrize("seed", range(20))
def test_exactly_the_injected_discrepancies_are_found(seed: int, tmp_path: Path) -> None:
    random_ = random.Random(seed)
    world = World(random_)
    chosen = random_.sample(world.actors[:12], len(SEEDS))
    pairs = zip(SEEDS, chosen, strict=True)
    expected = [one for put_in, actor in pairs for one in put_in(world, actor, random_)]
    result = world.compare(tmp_path)
    assert found_in(result) == sorted(expected)
    assert {one.node for one in result.findings} == {HEAD, OTHER_NODE}
    assert all(result.to_dict()["counts"].values())


def test_a_node_matches_by_name_or_address(tmp_path: Path) -> None:
    world = World(random.Random(0))
    for actor, node in zip(world.actors[:4], ("head", "10.0.0.1", HEAD, ""), strict=True):
        lease_id = f"{CLUSTER}/{actor.actor_id}/0.0"
        span = world.events[actor.number][-1]
        world.events[actor.number] = [*lease(lease_id, actor.start, actor.end, node=node), span]
    assert world.compare(tmp_path).clean


def test_a_group_is_leased_from_before_its_first_actor_until_its_last_one_dies(tmp_path: Path) -> None:
    world = World(random.Random(1))
    run = world.events[-1]
    group = run[0].placement_group  # type: ignore[union-attr]
    stem, last = f"grpo-1/1-{group[:12]}", (START + 5000) * S
    kept = [one for one in run if isinstance(one, SpanRecorded)]
    for ends, expected in (
        ((last, last + 40 * S), [(RayDiscrepancy.LEASED_TOO_LONG, 40 * S)]),
        # Both begin too early: the two actors of that time are reported, not their leases.
        ((last - 60 * S, last - 70 * S), [(RayDiscrepancy.LEASED_TOO_SHORT, 60 * S)] * 2),
    ):
        leases = [lease(f"{stem}/{slot}.0", START * S, end, group) for slot, end in enumerate(ends)]
        within = [one for one in kept if one.end_ns <= min(ends)]
        world.events[-1] = [*leases[0], *leases[1], *within]
        assert [(one.kind, one.ns) for one in world.compare(tmp_path).findings] == expected
    world.events[-1] = []
    assert [one.kind for one in world.compare(tmp_path).findings] == [RayDiscrepancy.ACTOR_NOT_LEASED] * 3


def test_events_that_ray_has_not_reported_yet_are_not_discrepancies(tmp_path: Path) -> None:
    world = World(random.Random(2))
    alive = next(actor for actor in world.actors if actor.end is None)
    recording = world.recording(tmp_path)
    lease_id = f"{CLUSTER}/{alive.actor_id}/0.0"
    ended = max(recording.last_ns, alive.start) + 100 * S
    world.events[alive.number] = lease(lease_id, alive.start, ended)
    events, now = world.ledger_events(), ended + 1000 * S
    assert reconcile_ray(events, recording, 0, now, POLICY).clean
    [finding] = reconcile_ray(events, recording, 0, now, POLICY, now).findings
    assert (finding.kind, finding.ns) == (RayDiscrepancy.LEASED_TOO_SHORT, 1000 * S)


def recorded(name: str) -> tuple[Recording, list[Event]]:
    folder = RECORDINGS[name]
    spool = (folder / "ledger" / "watch.jsonl").read_text().splitlines()
    return read_ray_events(folder), [event_from_json(line) for line in spool]


@pytest.mark.parametrize(("name", "precision", "alive"), [("exported", S, 0), ("posted", 1, 2)])
def test_recordings_of_a_real_cluster_match_its_watcher(name: str, precision: int, alive: int) -> None:
    """Ray 2.60 with a snapshot every 2.5 s: an actor in a group, one that was killed, two that
    shared a GPU and went out of scope, one that Ray restarted after a crash, one that crashed
    permanently, one without resources.
    """
    recording, events = recorded(name)
    result = reconcile_ray(events, recording, 3 * S, recording.last_ns, POLICY)
    assert result.findings == ()
    assert (result.lives, result.leases, result.precision_ns) == (7, 6, precision)
    deaths = [life.death for life in recording.lives]
    assert deaths.count(Death.CRASHED) == 2 and deaths.count(Death.NONE) == alive
    assert deaths.count(Death.INTENDED) == 6 - alive
    [(_, names)] = recording.nodes.items()
    assert names == ("192.0.2.2", "192.0.2.2")


def test_only_the_end_of_the_group_depends_on_the_watcher(tmp_path: Path) -> None:
    """All other times are exact to a millisecond, or for a restart to its duration."""
    recording, events = recorded("posted")
    result = reconcile_ray(events, recording, S // 2, recording.last_ns + 9 * S, POLICY)
    assert [(one.kind, one.actor) for one in result.findings] == [(RayDiscrepancy.LEASED_TOO_LONG, "inside")]


def test_rounding_to_whole_seconds_is_not_a_discrepancy(tmp_path: Path) -> None:
    recording, events = recorded("exported")
    result = reconcile_ray(events, recording, 0, recording.last_ns, POLICY)
    assert [(one.kind, one.actor) for one in result.findings] == [(RayDiscrepancy.LEASED_TOO_LONG, "inside")]


def test_only_leases_of_the_recorded_cluster_are_compared(tmp_path: Path) -> None:
    world = World(random.Random(3))
    recording = world.recording(tmp_path)
    group = f"{77:028x}01000000"
    stranger = f"{99:024x}01000000"
    ours = [f"{CLUSTER}/{world.actors[0].actor_id}/0.0", f"grpo-1/1-{group[:12]}/0.0", f"x/{group}/0.1"]
    same_cluster = [f"{CLUSTER}/{stranger}/0.shared"]
    others = [
        f"other/{stranger}/0.0",
        "slurm/alps/17/0",
        f"run/1-{'0' * 11}1/0.0",
        f"{CLUSTER}/{'9' * 36}/0.0",
    ]
    assert leases_to_compare(recording, [*others, *ours, *same_cluster]) == [*ours, *same_cluster]


def test_corrections_and_unrelated_leases_are_handled(tmp_path: Path) -> None:
    from orchestrator.ledger.events import Correction

    world = World(random.Random(4))
    recording, now = world.recording(tmp_path), (START + 6000) * S
    prices = {"name": "t", "currency": "USD", "region": "x", "commitment": "owned", "prices": []}
    ledger = Ledger.in_memory(prices, POLICY, lambda: now)
    actor = world.actors[5]
    assert actor.end is not None
    lease_id = f"{CLUSTER}/{actor.actor_id}/0.0"
    wrong = LeaseClosed("wrong", actor.end - 150 * S, lease_id, "released")
    ledger.book([*world.ledger_events(), *lease("other/1/0.0", START * S, None), wrong])
    kinds = {one.kind for one in ledger.reconcile_ray(recording, S).findings}
    assert kinds == {RayDiscrepancy.LEASED_TOO_SHORT}
    ledger.book([Correction("x", now, "wrong", "a typing error")])
    assert ledger.reconcile_ray(recording, S).clean


# -- reading


def export(state: str, at: int, number: int = 1, **fields: Any) -> str:
    data = {"actor_id": text_of(f"{number:032x}"), "state": state, "death_cause": {}, "node_id": "", **fields}
    return json.dumps(
        {
            "source_type": "EXPORT_ACTOR",
            "event_id": f"{state}{at}{number}",
            "timestamp": at,
            "event_data": data,
        }
    )


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_rotated_files_are_read_oldest_first_and_an_event_counts_once(tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "export_events"
    write(logs / "event_EXPORT_ACTOR.2.log", export("PENDING_CREATION", 5), export("ALIVE", 5))
    write(logs / "event_EXPORT_ACTOR.1.log", export("ALIVE", 5), export("RESTARTING", 5))
    write(logs / "event_EXPORT_ACTOR.log", export("ALIVE", 5), export("ALIVE", 6), export("DEAD", 9))
    write(logs / "event_EXPORT_TASK_7.log", "what is no business of ours")
    lives = read_ray_events(tmp_path).lives
    assert [(life.number, life.start_ns, life.end_ns, life.death) for life in lives] == [
        (0, 5 * S, 5 * S, Death.CRASHED),
        (1, 6 * S, 9 * S, Death.UNKNOWN),
    ]


def test_incomplete_lines_and_unrelated_events_are_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.log", "", '{"source_type":"EXPORT_TASK"}', export("ALIVE", 5))
    with path.open("a") as file:
        file.write('{"source_type":"EXPORT_ACTOR","ev')
    assert len(read_ray_events(path).lives) == 1


def test_the_more_precise_format_counts_and_both_spellings_of_names_are_read(tmp_path: Path) -> None:
    actor = Actor(1, START * S + 5, START * S + 9 * S)
    preserved = json.dumps(actor.posted()).replace("stateTransitions", "state_transitions")
    same = f"{int(actor.actor_id, 16):032x}"
    write(tmp_path / "posted.jsonl", preserved)
    write(
        tmp_path / "event_EXPORT_ACTOR.log",
        export("ALIVE", START, int(same, 16)),
        export("DEAD", START + 9, int(same, 16)),
    )
    [life] = read_ray_events(tmp_path).lives
    assert (life.start_ns, life.end_ns, life.grain_ns) == (actor.start, actor.end, 1)


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ({"actor_died_error_context": {"reason": "RAY_KILL"}}, Death.INTENDED),
        ({"actor_died_error_context": {"reason": "OUT_OF_SCOPE"}}, Death.INTENDED),
        ({"actor_died_error_context": {"reason": "WORKER_DIED", "error_message": CRASH[1]}}, Death.CRASHED),
        (
            {
                "actor_died_error_context": {
                    "reason": "OWNER_DIED",
                    "error_message": "Owner worker exit type: INTENDED_USER_EXIT",
                }
            },
            Death.INTENDED,
        ),
        ({"actor_died_error_context": {"reason": "NODE_DIED"}}, Death.CRASHED),
        (
            {
                "actor_died_error_context": {
                    "reason": "NODE_DIED",
                    "node_death_info": {"reason": "AUTOSCALER_DRAIN_IDLE"},
                }
            },
            Death.INTENDED,
        ),
        ({"creation_task_failure_context": {}}, Death.CRASHED),
        ({"oom_context": {"error_message": "out of memory"}}, Death.CRASHED),
        ({}, Death.UNKNOWN),
    ],
)
def test_the_cause_of_death_is_classified(context: dict[str, Any], expected: Death, tmp_path: Path) -> None:
    file = write(tmp_path / "a.log", export("ALIVE", 5), export("DEAD", 6, death_cause=context))
    assert [life.death for life in read_ray_events(file).lives] == [expected]


def test_the_resources_of_an_actor_are_read(tmp_path: Path) -> None:
    group = f"{5:036x}"
    held: Iterable[tuple[dict[str, float], str, tuple[float, float, bool]]] = (
        ({}, "", (0, 0, False)),
        ({"CPU": 0.5}, "", (0, 0.5, False)),
        ({"CPU": 2, "memory": 7}, "", (0, 2, True)),
        ({"GPU": 0.25}, "", (0.25, 0, True)),
        ({f"GPU_group_{group}": 2, f"GPU_group_0_{group}": 2}, group, (2, 0, True)),
        ({f"bundle_group_{group}": 0.001}, group, (0, 0, True)),
    )
    for resources, placed, expected in held:
        fields: dict[str, Any] = {"required_resources": resources, "placement_group_id": text_of(placed)}
        [life] = read_ray_events(write(tmp_path / "a.log", export("ALIVE", 5, **fields))).lives
        assert (life.gpus, life.cpus, life.holds, life.group) == (*expected, placed)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"a\.log:2: got b'\{', allowed: one JSON object per line"),
        ("7", r"a\.log:2: got 7, allowed: a JSON object"),
        ('{"source_type":"EXPORT_ACTOR","event_data":{}}', r"a\.log:2.*an event of Ray 2\.60 \(KeyError"),
        ('{"event_id":"1"}', r"a\.log:2.*an event of Ray 2\.60 \(KeyError: 'source_type'"),
        (export("ALIVE", 6, actor_id="no base64!"), r"a\.log:2.*an event of Ray 2\.60"),
    ],
)
def test_a_malformed_event_is_rejected_with_its_location(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=message):
        read_ray_events(write(tmp_path / "a.log", export("ALIVE", 5), line))


def test_without_events_the_error_explains_how_to_enable_them(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "no event files"),
        (tmp_path / "none", "no such file"),
        (write(tmp_path / "empty.log"), "RAY_enable_export_api_write_config"),
    ):
        with pytest.raises(LedgerError, match=message):
            read_ray_events(path)
