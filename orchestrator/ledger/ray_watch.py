"""Turns periodic snapshots of a Ray cluster into lease events.

- A placement group holds its bundles from its creation to its removal. Ray does not report when it was
  removed, so that time is only known to within one interval. Bundles not used by its actors are idle.
- An actor outside a group holds its own GPUs, or its whole CPUs if it has none, from its start to its end.
  Actors with fractions of a GPU share one (first fit), and its time is split between them.
- When Ray restarts an actor, its old lease ends there, lost since it was last seen, and a new one begins. A
  lease is also closed as lost if its actor crashed.
- An actor without resources holds nothing. Tasks are not visible.

Start times, and the ends of actors, come from Ray and are the same in each snapshot. So a restarted watcher
emits the same events again, and they count once. Jobs of this project's trainer are skipped, because they
emit their own events.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from orchestrator.ledger.events import Event, Heartbeat, LeaseClosed, LeaseOpened, RunDeclared, SpanRecorded
from orchestrator.ledger.imports.statements import UNSTATED, identity
from orchestrator.ledger.labels import Labels
from orchestrator.ledger.ray_state import RayActor, RayGroup, RayJob, RaySnapshot

ROLE, ACTIVITY = "actor", "run"

SEEN_NS = 5 * 60 * 1_000_000_000
"""A group that disappears counts as released if it was seen within this time, otherwise as lost."""


@dataclass(frozen=True, slots=True)
class WatchNames:
    """SKUs of GPUs and CPU slots, and the labels of jobs whose metadata (keys `team`, `project`, ...)
    does not set them.
    """

    gpu_sku: str
    cpu_sku: str
    labels: Labels


@dataclass(frozen=True, slots=True)
class _Lease:
    """A leased accelerator and the actors that work on it."""

    lease_id: str
    job_id: str
    resource: str
    node: str
    group: str
    slot: int
    start_ns: int
    end_ns: int | None
    users: tuple[RayActor, ...]


class Watch:
    """The state of one cluster between snapshots. `earlier` contains the events of a previous watcher."""

    def __init__(self, names: WatchNames, earlier: Iterable[Event] = ()) -> None:
        self._names = names
        self._declared: set[str] = set()
        self._open: dict[str, int] = {}
        self._closed: dict[str, int] = {}
        for event in earlier:
            if isinstance(event, RunDeclared):
                self._declared.add(event.run_id)
            elif isinstance(event, LeaseOpened):
                self._open.setdefault(event.lease_id, event.at_ns)
            elif isinstance(event, Heartbeat | SpanRecorded) and event.lease_id in self._open:
                seen = event.at_ns if isinstance(event, Heartbeat) else event.end_ns
                self._open[event.lease_id] = max(self._open[event.lease_id], seen)
            elif isinstance(event, LeaseClosed):
                self._open.pop(event.lease_id, None)
                self._closed[event.lease_id] = event.at_ns

    @property
    def held(self) -> int:
        """The number of open leases."""
        return len(self._open)

    def observe(self, snapshot: RaySnapshot, now_ns: int) -> list[Event]:
        """The events that follow from one snapshot."""
        leases = leases_of(snapshot)
        events: list[Event] = self._close_what_is_gone(snapshot, {lease.lease_id for lease in leases}, now_ns)
        for lease in leases:
            if lease.lease_id not in self._closed and lease.start_ns <= now_ns:
                events += self._one(snapshot, lease, now_ns)
        return events

    def _close_what_is_gone(self, snapshot: RaySnapshot, seen: set[str], now_ns: int) -> list[Event]:
        again = {f"{snapshot.cluster}/{actor.actor_id}": actor.start_ns for actor in snapshot.actors}
        events: list[Event] = []
        for lease_id in sorted(self._open.keys() - seen):
            last_seen_ns = self._open[lease_id]
            restarted_ns = again.get(lease_id.rpartition("/")[0])
            if restarted_ns is not None:
                at_ns = min(now_ns, max(restarted_ns, last_seen_ns))
                events.append(self._close(lease_id, at_ns, "lost"))
            else:
                # It was released after it was last seen; if that is long ago, we cannot know when.
                reason = "released" if now_ns - last_seen_ns <= SEEN_NS else "lost"
                events.append(self._close(lease_id, now_ns, reason))
        return events

    def _one(self, snapshot: RaySnapshot, lease: _Lease, now_ns: int) -> Iterator[Event]:
        """The events of a lease: its opening if it is new, the work since the last snapshot, its
        close if it ended.
        """
        run_id, declarations = self._run(snapshot, lease.job_id, lease.start_ns)
        yield from declarations
        for actor in lease.users:
            yield from self._run(snapshot, actor.job_id, actor.start_ns)[1]
        if lease.lease_id not in self._open:
            ended = [self._closed.get(name, 0) for name in _earlier_lives(lease)]
            start_ns = self._open[lease.lease_id] = max([lease.start_ns, *ended])
            sku = self._names.gpu_sku if lease.resource == "gpu" else self._names.cpu_sku
            yield LeaseOpened(
                identity("ray", lease.lease_id, "open"),
                start_ns,
                lease.lease_id,
                run_id,
                1,
                lease.resource,
                sku,
                lease.node,
                lease.group,
                lease.slot,
            )
        since = self._open[lease.lease_id]
        until = now_ns if lease.end_ns is None else min(lease.end_ns, now_ns)
        spans = list(_spans(snapshot, lease, since, until))
        yield from spans
        self._open[lease.lease_id] = max(since, until)
        if lease.end_ns is not None:
            crashed = any(actor.crashed and actor.end_ns == lease.end_ns for actor in lease.users)
            yield self._close(lease.lease_id, lease.end_ns, "lost" if crashed else "released")
        elif not spans:
            yield Heartbeat(uuid.uuid4().hex, now_ns, lease.lease_id)

    def _close(self, lease_id: str, at_ns: int, reason: str) -> LeaseClosed:
        del self._open[lease_id]
        self._closed[lease_id] = at_ns
        return LeaseClosed(identity("ray", lease_id, "close"), at_ns, lease_id, reason)

    def _run(self, snapshot: RaySnapshot, job_id: str, at_ns: int) -> tuple[str, list[RunDeclared]]:
        """The run of a job, and its declaration if it is new."""
        run_id = _run_id(snapshot, job_id)
        if run_id in self._declared:
            return run_id, []
        self._declared.add(run_id)
        job = snapshot.jobs.get(job_id) or RayJob(job_id, "", "", {})
        named = {name: job.metadata.get(name) or text for name, text in self._names.labels._asdict().items()}
        labels = Labels(**named)
        declaration = RunDeclared(
            identity("ray", run_id, *labels),
            at_ns,
            run_id,
            1,
            labels.job or job.entrypoint,
            labels.purpose or UNSTATED,
            labels.organisation,
            labels.cost_centre,
            labels.team,
            labels.project,
            labels.pipeline,
            labels.stage,
        )
        return run_id, [declaration]


def _earlier_lives(lease: _Lease) -> list[str]:
    """The leases of the earlier incarnations of an actor."""
    if lease.group:
        return []
    holder, _, place = lease.lease_id.rpartition("/")
    number, _, unit = place.partition(".")
    return [f"{holder}/{life}.{unit}" for life in range(int(number))]


def _run_id(snapshot: RaySnapshot, job_id: str) -> str:
    job = snapshot.jobs.get(job_id)
    return f"ray-{snapshot.cluster}/{job.submission_id if job and job.submission_id else job_id}"


def leases_of(snapshot: RaySnapshot) -> list[_Lease]:
    """All leases in a snapshot, without those of this project's own jobs."""
    ours = {job.job_id for job in snapshot.jobs.values() if job.ours}
    actors = [actor for actor in snapshot.actors if actor.job_id not in ours]
    alone = [actor for actor in actors if not actor.group]
    found: list[_Lease] = []
    for group in snapshot.groups:
        if group.held and group.job_id not in ours:
            members = [actor for actor in actors if actor.group == group.group_id]
            found += _of_group(snapshot.cluster, group, members)
    found += [lease for actor in alone for lease in _of_actor(snapshot.cluster, actor)]
    nodes = sorted({actor.node for actor in alone if actor.gpus % 1})
    for node in nodes:
        sharing = [actor for actor in alone if actor.node == node and actor.gpus % 1]
        found += _shared(snapshot.cluster, sharing)
    return found


def _of_group(cluster: str, group: RayGroup, members: Iterable[RayActor]) -> Iterator[_Lease]:
    """One lease per GPU of each bundle, or per CPU if it has no GPU; actors are assigned first fit."""
    units = [
        (bundle, "gpu" if bundle.gpus else "cpu", unit)
        for bundle in group.bundles
        for unit in range(math.ceil(bundle.gpus or bundle.cpus))
    ]
    free = dict.fromkeys(range(len(units)), 1.0)
    users: dict[int, list[RayActor]] = {}
    for actor in sorted(members, key=lambda actor: (actor.start_ns, actor.actor_id)):
        needed = actor.gpus or actor.cpus
        kind = "gpu" if actor.gpus else "cpu"
        for place, (bundle, resource, _) in enumerate(units):
            take = min(needed, free[place])
            if needed < 1 and free[place] < needed:
                continue
            if actor.end_ns is None and resource == kind and bundle.node == actor.node and take > 0:
                free[place] -= take
                needed -= take
                users.setdefault(place, []).append(actor)
    for place, (bundle, resource, unit) in enumerate(units):
        yield _Lease(
            f"{cluster}/{group.group_id}/{bundle.index}.{unit}",
            group.job_id,
            resource,
            bundle.node,
            group.group_id,
            bundle.index,
            group.start_ns,
            None,
            tuple(users.get(place, ())),
        )


def _of_actor(cluster: str, actor: RayActor) -> Iterator[_Lease]:
    """The whole GPUs of an actor outside any group, or its whole CPUs."""
    whole = int(actor.gpus) if actor.gpus else int(actor.cpus)
    for unit in range(whole):
        yield _Lease(
            f"{cluster}/{actor.actor_id}/{actor.restarts}.{unit}",
            actor.job_id,
            "gpu" if actor.gpus else "cpu",
            actor.node,
            "",
            unit,
            actor.start_ns,
            actor.end_ns,
            (actor,),
        )


@dataclass(slots=True)
class _SharedGpu:
    """A GPU shared by actors with fractions of one: from the first actor until all are gone."""

    first: RayActor
    free: float
    present: set[str]
    users: list[RayActor]
    end_ns: int | None = None


def _shared(cluster: str, actors: Iterable[RayActor]) -> Iterator[_Lease]:
    """The shared GPUs of one node, from the starts and ends of its actors in chronological order. The result
    for past times never changes, because no decision depends on later events.
    """
    changes: list[tuple[int, int, str, RayActor]] = []
    for actor in actors:
        changes.append((actor.start_ns, 1, actor.actor_id, actor))
        if actor.end_ns is not None:
            changes.append((actor.end_ns, 0, actor.actor_id, actor))
    gpus: list[_SharedGpu] = []
    for at_ns, starts, _, actor in sorted(changes, key=lambda change: change[:3]):
        part = actor.gpus % 1
        if starts:
            fitting = (gpu for gpu in gpus if gpu.end_ns is None and gpu.free + 1e-9 >= part)
            gpu = next(fitting, None)
            if gpu is None:
                gpu = _SharedGpu(actor, 1.0, set(), [])
                gpus.append(gpu)
            gpu.free -= part
            gpu.present.add(actor.actor_id)
            gpu.users.append(actor)
        else:
            gpu = next(gpu for gpu in gpus if actor.actor_id in gpu.present)
            gpu.free += part
            gpu.present.remove(actor.actor_id)
            if not gpu.present:
                gpu.end_ns = at_ns
    for gpu in gpus:
        yield _Lease(
            f"{cluster}/{gpu.first.actor_id}/{gpu.first.restarts}.shared",
            gpu.first.job_id,
            "gpu",
            gpu.first.node,
            "",
            0,
            gpu.first.start_ns,
            gpu.end_ns,
            tuple(gpu.users),
        )


def _spans(snapshot: RaySnapshot, lease: _Lease, since_ns: int, until_ns: int) -> Iterator[SpanRecorded]:
    """The work of each actor in [since, until); attributed to its own job's run if another job
    holds the lease.
    """
    for actor in lease.users:
        start = max(since_ns, actor.start_ns)
        end = until_ns if actor.end_ns is None else min(actor.end_ns, until_ns)
        if start < end:
            name = f"{actor.name}-{actor.actor_id[:8]}"
            event_id = identity("ray", lease.lease_id, actor.actor_id, str(start), str(end))
            run = "" if actor.job_id == lease.job_id else _run_id(snapshot, actor.job_id)
            yield SpanRecorded(event_id, lease.lease_id, name, ROLE, ACTIVITY, start, end, 0, 0, run)
