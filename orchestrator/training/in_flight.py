"""The requests that rollout workers are working on, and which of their groups are still wanted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from orchestrator.errors import DataLostError
from orchestrator.training.stages import Generated, RolloutRequest, RolloutStage

OnGenerated = Callable[[Generated], Coroutine[Any, Any, None]]
"""Scores groups that were sampled and admits them to the buffer."""
OnLost = Callable[[DataLostError, Sequence[int]], None]
"""Called with the ids of the groups that cannot be sampled, because the weights are gone."""


class RequestsInFlight:
    """Follows each request with a task of its own, from its prompts to admitted groups."""

    def __init__(self, rollouts: RolloutStage, on_generated: OnGenerated, on_lost: OnLost) -> None:
        self._rollouts, self._on_generated, self._on_lost = rollouts, on_generated, on_lost
        self._wanted: dict[asyncio.Task[None], set[int]] = {}
        """The groups of each request that have neither arrived nor been dropped."""

    def start(self, tasks: asyncio.TaskGroup, request: RolloutRequest) -> None:
        """Sample the groups of a request; their scoring also runs in `tasks`."""
        wanted = {group_id for group_id, _ in request.groups}
        task = tasks.create_task(self._receive(tasks, request, wanted))
        self._wanted[task] = wanted
        task.add_done_callback(lambda done: self._wanted.pop(done, None))

    def drop(self, group_ids: Iterable[int]) -> None:
        """Cancel the requests of which no other group is left. The worker completes the other requests as a
        whole, because it takes and cancels them as a whole; the buffer refuses the dropped groups then.
        """
        dropped = set(group_ids)
        for task, wanted in self._wanted.items():
            if wanted & dropped:
                wanted -= dropped
                if not wanted:
                    task.cancel()

    async def _receive(self, tasks: asyncio.TaskGroup, request: RolloutRequest, wanted: set[int]) -> None:
        async with contextlib.aclosing(self._rollouts.generate(request)) as portions:
            try:
                async for generated in portions:
                    wanted.difference_update(group_id for group_id, _ in generated.request.groups)
                    tasks.create_task(self._on_generated(generated))
            except DataLostError as lost:
                self._on_lost(lost, sorted(wanted))
