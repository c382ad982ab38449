"""Requests to change the number of rollout workers of a running run.

A request is a small file under `requests/` of the run directory. Any process that may write there can make
one; the run's controller takes it, acts on it and records the outcome as an event `pool_requested`. A request
is data: two numbers and a flag. Anything else is refused.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.runs.files import write_atomically

SUFFIX = ".json"
LONGEST_BYTES = 4096
MOST_WORKERS = 1000
"""The most workers that one request may add or remove."""


@dataclass(frozen=True, slots=True)
class PoolRequest:
    """Add `change` workers, or remove `-change` of them. `at_once`: those that leave do not complete the
    rollouts that they are sampling.
    """

    request_id: str
    change: int
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class DamagedRequest:
    """A file that is not a request."""

    request_id: str
    problem: str


def new_request(change: int, at_once: bool) -> PoolRequest:
    """A request with an id of its own. Ids sort by time."""
    return PoolRequest(f"{time.time_ns():020d}-{secrets.token_hex(4)}", change, at_once)


def make(folder: Path, request: PoolRequest) -> None:
    """Hand the request to the run. Raises OSError."""
    folder.mkdir(exist_ok=True)
    content = {"change": request.change, "at_once": request.at_once}
    write_atomically(folder / f"{request.request_id}{SUFFIX}", json.dumps(content) + "\n")


def take_all(folder: Path) -> list[PoolRequest | DamagedRequest]:
    """Remove all requests from the folder and return them, the oldest first. Raises OSError."""
    if not folder.is_dir():
        return []
    found: list[PoolRequest | DamagedRequest] = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        found.append(_read(path))
        path.unlink(missing_ok=True)
    return found


def _read(path: Path) -> PoolRequest | DamagedRequest:
    name = path.name.removesuffix(SUFFIX)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            content: Any = json.loads(file.read(LONGEST_BYTES))
        change, at_once = content["change"], content["at_once"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return DamagedRequest(name, f"it cannot be read: {type(error).__name__}")
    if type(change) is not int or not 1 <= abs(change) <= MOST_WORKERS or type(at_once) is not bool:
        return DamagedRequest(name, f"it must ask for 1 to {MOST_WORKERS} workers")
    return PoolRequest(name, change, at_once)
