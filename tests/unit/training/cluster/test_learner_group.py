"""What every learner rank is told."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.training.checkpoints.checkpointer import Checkpointer, LoopState
from orchestrator.training.cluster.learner_group import RayLearnerGroup


class _Call:
    """A method of an actor: remembers what it was called with, and writes nothing."""

    def __init__(self, calls: list[tuple[object, ...]]) -> None:
        self._calls = calls

    def options(self, **_: object) -> _Call:
        return self

    def remote(self, *arguments: object) -> Any:
        self._calls.append(arguments)
        future: Future[Any] = Future()
        future.set_result(())
        return SimpleNamespace(future=lambda: future)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_every_rank_books_a_checkpoint_under_its_step(
    asynchronous: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[tuple[object, ...]] = []
    copied: list[tuple[object, ...]] = []
    rank = SimpleNamespace(save=_Call(saved), snapshot=_Call(copied), write=_Call([]))
    monkeypatch.setattr(RayLearnerGroup, "_start", lambda _: [rank, rank])
    seats: Any = [SimpleNamespace(name=f"learner-{number}") for number in range(2)]
    nothing: Any = None
    group = RayLearnerGroup(seats, nothing, nothing, 1.0)

    async def main() -> None:
        checkpoints = Checkpointer(tmp_path, keep=1, asynchronous=asynchronous)
        await checkpoints.save(group, LoopState(40, 80, (), {}))
        await checkpoints.wait_for_pending()

    asyncio.run(main())
    told = copied if asynchronous else saved
    assert [arguments[-1] for arguments in told] == [40, 40]
