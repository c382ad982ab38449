"""Checkpoints: the parts' states composed, the manifest last, the directory renamed into place.

    save(step 10)   snapshot to memory            | the step waits for this
                    write, sync, digest, manifest | behind the next steps, if asynchronous
    save(step 20)   waits for the write of step 10, then the same

A failed save leaves the earlier checkpoints as they were, and is raised by the next call here: no later than
the end of the run. With a mirror each checkpoint is also copied to a store outside the machine, behind the
run's back; a new machine restores from there.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.errors import CheckpointError, StorageError, WorkerLostError
from orchestrator.training.checkpoints.format import (
    LOOP_STATE,
    MANIFEST,
    commit,
    complete,
    name_of,
    partial_of,
    remove,
    remove_partial,
    set_aside,
    step_of,
    verify,
)
from orchestrator.training.checkpoints.mirror import CheckpointMirror
from orchestrator.training.stages import Savable, Span

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
    """Writes and restores checkpoints under `directory` (on a cluster: storage that every node
    mounts), keeping the newest `keep`, and copies them to the mirror's store if there is one. Belongs
    to one event loop.
    """

    def __init__(
        self,
        directory: Path,
        keep: int,
        mirror: CheckpointMirror | None = None,
        *,
        asynchronous: bool = False,
        on_written: Callable[[int], None] | None = None,
        check_writer: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_written` receives the step of each checkpoint as soon as it can be restored. `check_writer`
        raises if this process may no longer write to the run.
        """
        if keep < 1:
            raise ValueError(f"keep must be 1 or more, got {keep}")
        self._directory, self._keep, self._mirror = directory, keep, mirror
        self._asynchronous, self._on_written = asynchronous, on_written
        self._check_writer = check_writer
        self._writing: asyncio.Task[None] | None = None

    async def save(self, learner: Savable, state: LoopState) -> tuple[Span, ...]:
        """Write the checkpoint of `state.step`, unless it is there already: here and now or, if asynchronous,
        from a snapshot, behind the caller's back.

        Raises CheckpointError if the disk refuses, now or for the checkpoint before, or if the store was out
        of reach too often; earlier checkpoints stay.
        """
        await self.wait_for_pending()
        if (self._directory / name_of(state.step) / MANIFEST).exists():
            return ()
        if self._asynchronous:
            spans = await learner.snapshot(state.step)
            self._writing = asyncio.ensure_future(self._write(learner.write, state))
            return spans
        return await self._write(lambda directory: learner.save(directory, state.step), state)

    def raise_if_failed(self) -> None:
        """Raise what kept the checkpoint under way from being written, if that is known by now."""
        if self._writing is not None and self._writing.done():
            writing, self._writing = self._writing, None
            writing.result()

    async def wait_for_pending(self) -> None:
        """Wait until the checkpoint under way is there. Raises what kept it from being written."""
        if self._writing is not None:
            await asyncio.wait({self._writing})
            self.raise_if_failed()

    def abandon(self) -> None:
        """Give up the checkpoint under way."""
        if self._writing is not None:
            self._writing.cancel()

    async def close(self) -> None:
        """Wait until nothing is written any more. What fails here is only logged: the run has ended, for a
        reason of its own.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        await asyncio.wait({writing})
        if not writing.cancelled() and (error := writing.exception()) is not None:
            logger.error("the last checkpoint was not written: %s", error)

    async def _write(self, write: Callable[[Path], Awaitable[T]], state: LoopState) -> T:
        final = self._directory / name_of(state.step)
        partial = partial_of(final)
        self._check_writer()
        try:
            remove_partial(partial)
            partial.mkdir(parents=True)
            written = await write(partial)
            self._check_writer()
            await _in_thread(lambda: commit(partial, final, asdict(state)))
        except BaseException as error:
            remove_partial(partial)
            if isinstance(error, (OSError, StorageError)):
                raise CheckpointError(
                    f"the checkpoint of step {state.step} could not be written to {self._directory}: {error}"
                ) from error
            raise
        if self._on_written is not None:
            self._on_written(state.step)
        if self._mirror is not None:
            self._mirror.offer(final)
        await _in_thread(self._prune)
        return written

    async def restore(self, learner: Savable) -> LoopState | None:
        """Load the newest good checkpoint, here or in the store, into the learner; None if there
        is none at all.

        One here whose files don't match its manifest is done without, and set aside, with a warning that
        names the file. A checkpoint under way is waited for; one that went with a lost rank is done without.

        Raises CheckpointError if there are some and none is good (they stay as they are), if the store
        has a newer one that is damaged, and if the store can't be asked while the newest here is
        missing or damaged.
        """
        try:
            await self.wait_for_pending()
        except WorkerLostError as lost:
            logger.warning("going on without the checkpoint under way: %s", lost)
        await _in_thread(self._remove_partials)
        newest = await self._newest_good()
        if newest is None:
            return None
        await learner.load(newest)
        try:
            raw = json.loads((newest / LOOP_STATE).read_text())
            outstanding = tuple((int(group_id), str(prompt_id)) for group_id, prompt_id in raw["outstanding"])
            return LoopState(int(raw["step"]), int(raw["next_group"]), outstanding, dict(raw["prompts"]))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{newest / LOOP_STATE} is not the state of a loop: {error!r}") from error

    async def flush(self) -> None:
        """Wait until the newest checkpoint is there, and in the store. Raises CheckpointError if it
        can't be had there.
        """
        await self.wait_for_pending()
        if self._mirror is not None:
            await self._mirror.flush()

    async def _newest_good(self) -> Path | None:
        damaged: dict[Path, Exception] = {}
        while (newest := await self._newest_anywhere(damaged)) is not None:
            try:
                await _in_thread(partial(verify, newest))
            except (CheckpointError, OSError) as error:
                if newest in damaged:  # again, just after the store's good copy was put there
                    raise
                damaged[newest] = error
                continue
            for path, error in damaged.items():
                where = "the store has a good copy"
                if path != newest:
                    where = f"what is left of it is in {await _in_thread(partial(set_aside, path))}"
                logger.warning("going on from %s: %s; %s", newest.name, error, where)
            return newest
        if damaged:
            raise next(iter(damaged.values()))
        return None

    async def _newest_anywhere(self, damaged: Collection[Path]) -> Path | None:
        """The checkpoint with the highest step that is not known to be damaged, fetched if it is in
        the store only.
        """
        good = [path for path in complete(self._directory) if path not in damaged]
        here, mirror = good[-1] if good else None, self._mirror
        if mirror is None:
            return here
        try:
            there = await _in_thread(mirror.store.newest)
        except CheckpointError as error:
            if here is None or damaged:
                raise
            logger.warning("going on from %s: %s", here, error)
            return here
        if there is None or (here is not None and (step_of(here.name) or 0) >= (step_of(there) or 0)):
            return here
        return await _in_thread(lambda: mirror.store.fetch(there, self._directory))

    def _remove_partials(self) -> None:
        """What processes that were killed while they wrote have left over."""
        for path in self._directory.glob(partial_of(Path("step-*")).name):
            remove_partial(path)

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
