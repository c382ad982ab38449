"""Reads the state of a Ray cluster (actors, placement groups, jobs, nodes) from the HTTP API
of its dashboard.

It does not need Ray, so it works with any cluster regardless of the version of its wire protocol. The fields
are those of Ray 2.60.
"""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.ledger.errors import LedgerUnavailableError

_TIMEOUT_SECONDS = 30
_LIMIT = 10_000
_CRASH = re.compile(r"exit type: (?!INTENDED_)|node has died|creation task")
"""Matches Ray's message about a death that was not intended."""
_OURS = re.compile(r"(^|[/\s])orchestrator\s+(run|resume)\b")


@dataclass(frozen=True, slots=True)
class RayActor:
    """An incarnation of an actor. Times are in nanoseconds; `end_ns` is None while it is alive. `crashed`: it
    died unintentionally.

    `gpus` and `cpus` are the resources it requested, `group` its placement group (empty: none). For a dead
    actor that was restarted, Ray only reports when its first incarnation started.
    """

    actor_id: str
    restarts: int
    name: str
    job_id: str
    node: str
    group: str
    gpus: float
    cpus: float
    start_ns: int
    end_ns: int | None
    crashed: bool


@dataclass(frozen=True, slots=True)
class RayBundle:
    """Resources that a placement group reserves on one node."""

    index: int
    node: str
    gpus: float
    cpus: float


@dataclass(frozen=True, slots=True)
class RayGroup:
    """A placement group, reserved since `start_ns`; not `held` once it was removed."""

    group_id: str
    job_id: str
    bundles: tuple[RayBundle, ...]
    start_ns: int
    held: bool


@dataclass(frozen=True, slots=True)
class RayJob:
    """A job. `metadata` comes from its submitter. `ours`: it spools its own events."""

    job_id: str
    submission_id: str
    entrypoint: str
    metadata: Mapping[str, str]

    @property
    def ours(self) -> bool:
        """Whether it runs this project's trainer."""
        return bool(_OURS.search(self.entrypoint))


@dataclass(frozen=True, slots=True)
class RaySnapshot:
    """The state of a cluster at one time. `cluster` is the id of its head node, because names and actor ids
    repeat between clusters.
    """

    cluster: str
    actors: tuple[RayActor, ...]
    groups: tuple[RayGroup, ...]
    jobs: Mapping[str, RayJob]


def look(url: str) -> RaySnapshot:
    """Take a snapshot of the cluster whose dashboard is at `url`. Raises LedgerUnavailableError."""
    nodes = _list(url, "nodes")
    names = {str(node["node_id"]): str(node.get("node_name") or node.get("node_ip")) for node in nodes}
    heads = sorted(str(node["node_id"]) for node in nodes if node.get("is_head_node"))
    actors = _get(url, "/logical/actors")["data"]["actors"]
    jobs = [_job(fields) for fields in _get(url, "/api/jobs/")]
    try:
        return RaySnapshot(
            cluster=heads[0][:12] if heads else "ray",
            actors=tuple(_actor(fields, names) for fields in actors.values() if fields.get("startTime")),
            groups=tuple(
                found for fields in _list(url, "placement_groups") if (found := _group(fields, names))
            ),
            jobs={job.job_id: job for job in jobs if job.job_id},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        hint = f"{type(error).__name__}: {error}"
        raise LedgerUnavailableError(
            f"{url} does not answer like a dashboard of Ray 2.60: {hint}", key="--address", value=url
        ) from error


def _actor(fields: Mapping[str, Any], names: Mapping[str, str]) -> RayActor:
    needs = fields.get("requiredResources") or {}
    node = str((fields.get("address") or {}).get("nodeId", ""))
    end_ms = int(fields.get("endTime") or 0)
    restarts, state = int(fields.get("numRestarts") or 0), fields.get("state")
    # `startTime` is that of the first incarnation, `timestamp` that of the last change of state.
    start_ms = int(fields["timestamp"] if restarts and state == "ALIVE" else fields["startTime"])
    return RayActor(
        actor_id=str(fields["actorId"]),
        restarts=restarts,
        name=str(fields.get("name") or fields.get("actorClass") or "actor"),
        job_id=str(fields.get("jobId", "")),
        node=names.get(node, node),
        group=str(fields.get("placementGroupId") or ""),
        gpus=float(needs.get("GPU", 0)),
        cpus=float(needs.get("CPU", 0)),
        start_ns=start_ms * 1_000_000,
        end_ns=end_ms * 1_000_000 if state == "DEAD" and end_ms else None,
        crashed=state == "DEAD" and bool(_CRASH.search(str(fields.get("exitDetail")))),
    )


def _group(fields: Mapping[str, Any], names: Mapping[str, str]) -> RayGroup | None:
    """A group that has been reserved; None if it still waits for its resources."""
    stats = fields.get("stats") or {}
    asked_ns, latency_us = (
        int(stats.get(name) or 0)
        for name in ("creation_request_received_ns", "end_to_end_creation_latency_us")
    )
    if not latency_us or fields["state"] not in ("CREATED", "REMOVED", "RESCHEDULING"):
        return None
    bundles = [
        RayBundle(
            int(bundle["bundle_id"]["bundle_index"]),
            names.get(str(bundle.get("node_id")), str(bundle.get("node_id") or "")),
            float(bundle["unit_resources"].get("GPU", 0)),
            float(bundle["unit_resources"].get("CPU", 0)),
        )
        for bundle in fields["bundles"]
    ]
    return RayGroup(
        str(fields["placement_group_id"]),
        str(fields.get("creator_job_id", "")),
        tuple(bundles),
        asked_ns + latency_us * 1000,
        fields["state"] != "REMOVED",
    )


def _job(fields: Mapping[str, Any]) -> RayJob:
    metadata = fields.get("metadata") or {}
    return RayJob(
        str(fields.get("job_id") or ""),
        str(fields.get("submission_id") or ""),
        str(fields.get("entrypoint") or ""),
        {str(key): str(value) for key, value in metadata.items()},
    )


def _list(url: str, what: str) -> list[dict[str, Any]]:
    answer = _get(url, f"/api/v0/{what}?detail=1&limit={_LIMIT}")
    try:
        return list(answer["data"]["result"]["result"])
    except (KeyError, TypeError) as error:
        raise LedgerUnavailableError(
            f"{url} does not answer like a Ray dashboard: {error}", key="--address", value=url
        ) from error


def _get(url: str, path: str) -> Any:  # noqa: ANN401
    token = _token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(f"{url.rstrip('/')}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
            return json.loads(answer.read())
    except (OSError, ValueError) as error:  # URLError and HTTPError are OSErrors
        raise LedgerUnavailableError(
            f"Cannot reach the Ray dashboard at {url}: {error}", key="--address", value=url
        ) from error


def _token() -> str:
    """The token for clusters with authentication, from where Ray itself looks for it."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""
