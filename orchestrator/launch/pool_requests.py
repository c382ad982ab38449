"""Acts on requests to change the number of rollout workers while a run trains (`orchestrator workers`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

from orchestrator.errors import StateError
from orchestrator.runs.pool_requests import DamagedRequest, PoolRequest, take_all
from orchestrator.training.events import PoolRequested
from orchestrator.training.supervision.elastic import ElasticPool

logger = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 1.0


@contextlib.asynccontextmanager
async def following_requests(
    folder: Path, pool: ElasticPool[Any], on_event: Callable[[PoolRequested], None]
) -> AsyncGenerator[None]:
    """Act on requests while the body runs. Those that an earlier attempt has left are dropped."""
    take_all(folder)
    following = asyncio.ensure_future(_follow(folder, pool, on_event))
    try:
        yield
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def _follow(folder: Path, pool: ElasticPool[Any], on_event: Callable[[PoolRequested], None]) -> None:
    while True:
        await asyncio.sleep(LOOK_EVERY_SECONDS)
        try:
            requests = await asyncio.to_thread(take_all, folder)
            for request in requests:
                on_event(_act(request, pool))
        except Exception as error:  # noqa: BLE001 - training goes on, and the next look may succeed
            logger.warning("cannot take requests from %s: %s", folder, error)


def _act(request: PoolRequest | DamagedRequest, pool: ElasticPool[Any]) -> PoolRequested:
    if isinstance(request, DamagedRequest):
        return PoolRequested(request.request_id, 0, pool.wanted, request.problem)
    refused = ""
    try:
        if request.change > 0:
            pool.grow(request.change, "it was requested with orchestrator workers --add")
        else:
            why = "it was requested with orchestrator workers --remove"
            pool.shrink(-request.change, why, at_once=request.at_once)
    except StateError as error:
        refused = str(error)
    return PoolRequested(request.request_id, request.change, pool.wanted, refused)
