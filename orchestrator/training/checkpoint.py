"""Checkpoints: the parts' states composed, the manifest last, the directory renamed into place.

A failed save leaves the earlier checkpoints as they were. With a mirror each checkpoint is also copied to a
store outside the machine, behind the run's back; a new machine restores from there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.errors import CheckpointError
from orchestrator.training.checkpoint_format import (
    LOOP_STATE,
    MANIFEST,
    commit,
    complete,
    name_of,
    remove,
    step_of,
    verify,
)
from orchestrator.training.checkpoint_mirror import CheckpointMirror
from orchestrator.training.stages import LearnerStage, Span

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoopState:
    """What the loop itself must know to go on: everything else follows from the config and the seed."""

    step: int
    next_group: int
    outstanding: tuple[tuple[int, str], ...]
    """(group id, prompt id) of groups asked for and not trained on; they are asked for again, first."""
    prompts: Mapping[str, Any]


class Checkpointer:
    """Writes and restores checkpoints under `directory` (on a cluster: storage that every node mounts),
    keeping the newest `keep`, and copies them to the mirror's store if there is one.
    """

    def __init__(self, directory: Path, keep: int, mirror: CheckpointMirror | None = None) -> None:
        if keep < 1:
            raise ValueError(f"keep must be 1 or more, got {keep}")
        self._directory, self._keep, self._mirror = directory, keep, mirror

    async def save(self, learner: LearnerStage, state: LoopState) -> tuple[Span, ...]:
        """Write the checkpoint of `state.step`, unless it is there already. Raises CheckpointError if the
        disk refuses, or if the store was out of reach too often; earlier checkpoints stay.
        """
        final = self._directory / name_of(state.step)
        if (final / MANIFEST).exists():
            return ()
        partial = final.with_name(f".{final.name}.partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            spans = await learner.save(partial)
            await _in_thread(lambda: commit(partial, final, asdict(state)))
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError):
                raise CheckpointError(
                    f"the checkpoint of step {state.step} could not be written to {self._directory}: {error}"
                ) from error
            raise
        if self._mirror is not None:
            self._mirror.offer(final)
        await _in_thread(self._prune)
        return spans

    async def restore(self, learner: LearnerStage) -> LoopState | None:
        """Load the newest checkpoint, here or in the store, into the learner; None if there is none.

        Raises CheckpointError, naming the file, if its files don't match its manifest, and if nothing is here
        and the store can't be asked.
        """
        newest = await self._newest_anywhere()
        if newest is None:
            return None
        await _in_thread(lambda: verify(newest))
        await learner.load(newest)
        raw = json.loads((newest / LOOP_STATE).read_text())
        outstanding = tuple((int(group_id), str(prompt_id)) for group_id, prompt_id in raw["outstanding"])
        return LoopState(raw["step"], raw["next_group"], outstanding, raw["prompts"])

    def newest(self) -> Path | None:
        """The checkpoint with the highest step in the directory."""
        found = complete(self._directory)
        return found[-1] if found else None

    async def flush(self) -> None:
        """Wait until the store has the newest checkpoint. Raises CheckpointError if it can't be had there."""
        if self._mirror is not None:
            await self._mirror.flush()

    async def _newest_anywhere(self) -> Path | None:
        here, mirror = self.newest(), self._mirror
        if mirror is None:
            return here
        try:
            there = await _in_thread(mirror.store.newest)
        except CheckpointError as error:
            if here is None:
                raise
            logger.warning("going on from %s: %s", here, error)
            return here
        if there is None or (here is not None and (step_of(here.name) or 0) >= (step_of(there) or 0)):
            return here
        return await _in_thread(lambda: mirror.store.fetch(there, self._directory))

    def _prune(self) -> None:
        in_use = self._mirror.in_use() if self._mirror else ()
        for old in complete(self._directory)[: -self._keep]:
            if old not in in_use:
                remove(old)


async def _in_thread(function: Callable[[], T]) -> T:
    """Run what blocks without blocking the loop. It is waited for even if the caller is cancelled: nothing
    may go on writing files that a restore is about to read.
    """
    running = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise
