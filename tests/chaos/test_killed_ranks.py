"""A rank is killed while the others wait for it in a collective."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Generator
from typing import Any

import pytest
import ray

from orchestrator.errors import WorkerLostError
from orchestrator.training.cluster.calls import all_ranks, answer
from orchestrator.training.learner.sharding.distributed import DistributedInit, join
from tests.support.lanes import also_long
from tests.support.ports import quiet_ports
from tests.support.ranks import tcp_store

pytestmark = [pytest.mark.slow, pytest.mark.ray]

ROUNDS = 4
PATIENCE = 300.0
"""Seconds after which an actor counts as hung."""


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Generator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2**28)
    yield
    ray.shutdown()


class Rank:
    """One of two ranks that add up forever."""

    def process(self) -> int:
        return os.getpid()

    def meet(self, rank: int, port: int) -> None:
        join(DistributedInit(rank, 2, "gloo", "cpu", tcp_store(rank, 2, port)), threads=1)

    def add_up(self) -> None:
        import torch
        import torch.distributed as dist

        while True:
            dist.all_reduce(torch.ones(1000))


@pytest.mark.parametrize("_", also_long([0], range(1, ROUNDS)))
def test_the_death_of_a_rank_is_reported_rather_than_its_consequences(_: int) -> None:
    """gloo's error on the other rank and Ray's notice may come in any order."""
    ranks: list[Any] = [ray.remote(Rank).remote() for _ in range(2)]
    (port,) = quiet_ports(1)
    ray.get([rank.meet.remote(number, port) for number, rank in enumerate(ranks)], timeout=PATIENCE)
    (victim,) = ray.get([ranks[1].process.remote()], timeout=PATIENCE)
    refs = [rank.add_up.remote() for rank in ranks]

    async def kill_one() -> None:
        calls = (answer(f"learner-{number}", ref, PATIENCE) for number, ref in enumerate(refs))
        waiting = asyncio.ensure_future(all_ranks(calls, notice_seconds=PATIENCE))
        await asyncio.sleep(0.2)
        os.kill(victim, signal.SIGKILL)
        await waiting

    with pytest.raises(WorkerLostError, match="learner-1 was lost"):
        asyncio.run(kill_one())
    for rank in ranks:
        ray.kill(rank)
