"""Saves and restores checkpoints: the states of all components, then the manifest, then a rename into place.

    save(step 10)   snapshot to memory            | the step waits for this
                    write, sync, digest, manifest | during the next steps, if asynchronous
    save(step 20)   waits for the write of step 10, then does the same

A failed save leaves earlier checkpoints unchanged and is raised by the next call, at the latest at the end of
the run. With a mirror, each checkpoint is also copied in the background to a store outside the machine, from
which a new machine can restore the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.errors import CheckpointError, CheckpointFormatError, StorageError, WorkerLostError
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
from orchestrator.training.events import WaitKind
from orchestrator.training.stages import Savable, Span
from orchestrator.training.waiting import LEARNER, Waits

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoopState:
    """The loop's own state. Everything else follows from the config and the seed."""

    step: int
    next_group: int
    outstanding: tuple[tuple[int, str], ...]
    """(group id, prompt id) of groups that were requested but not trained on. They
    are requested again first.
    """
    prompts: Mapping[str, Any]


class Checkpointer:
    """Writes and restores checkpoints under `directory` (on a cluster: storage that every node mounts), keeps
    the newest `keep`, and copies them to the mirror's store if there is one. Use it from one event loop only.
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
        waits: Waits | None = None,
    ) -> None:
        """`on_written` receives the step of each checkpoint as soon as it can be restored. `check_writer`
        raises if this process may no longer write to the run.
        """
        if keep < 1:
            raise ValueError(f"keep must be 1 or more, got {keep}")
        self._directory, self._keep, self._mirror = directory, keep, mirror
        self._asynchronous, self._on_written = asynchronous, on_written
        self._check_writer, self._waits = check_writer, waits
        self._writing: asyncio.Task[None] | None = None

    async def save(self, learner: Savable, state: LoopState) -> tuple[Span, ...]:
        """Write the checkpoint of `state.step` unless it exists: immediately or, if asynchronous, from a
        snapshot in the background.

        Raises CheckpointError if this checkpoint or the previous one cannot be written, or if copies to the
        store have failed too often. Earlier checkpoints are kept.
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
        """Raise the error of the checkpoint in progress, if it has already failed."""
        if self._writing is not None and self._writing.done():
            writing, self._writing = self._writing, None
            writing.result()

    async def wait_for_pending(self) -> None:
        """Wait until the checkpoint in progress is complete. Raises its error if it fails."""
        if self._writing is not None:
            with self._watched():
                await asyncio.wait({self._writing})
            self.raise_if_failed()

    def _watched(self) -> contextlib.AbstractContextManager[None]:
        if self._waits is None:
            return contextlib.nullcontext()
        return self._waits.on(WaitKind.CHECKPOINT, LEARNER)

    def abandon(self) -> None:
        """Cancel the checkpoint in progress."""
        if self._writing is not None:
            self._writing.cancel()

    async def close(self) -> None:
        """Wait until all writes have ended. Errors are only logged, because the run has already
        ended for another reason.
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
        """Load the newest valid checkpoint, local or from the store, into the learner. Returns None if there
        is no checkpoint at all.

        A local checkpoint whose files do not match its manifest is skipped and set aside, with a warning that
        names the file. A checkpoint in progress is waited for, and skipped if it was lost with a rank.

        Raises CheckpointError if there are checkpoints but none is valid (they are kept unchanged), if
        the store has a newer one that is damaged, if the newest one has the format of another version, or if
        the store is unreachable while the newest local one is missing or damaged.
        """
        try:
            await self.wait_for_pending()
        except WorkerLostError as lost:
            logger.warning("continuing without the checkpoint in progress: %s", lost)
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
        """Wait until the newest checkpoint is complete and in the store. Raises
        CheckpointError if that fails.
        """
        await self.wait_for_pending()
        if self._mirror is not None:
            with self._watched():
                await self._mirror.flush()

    async def _newest_good(self) -> Path | None:
        damaged: dict[Path, Exception] = {}
        while (newest := await self._newest_anywhere(damaged)) is not None:
            try:
                await _in_thread(partial(verify, newest))
            except CheckpointFormatError:
                raise
            except (CheckpointError, OSError) as error:
                if newest in damaged:  # damaged again, although the store's valid copy has just replaced it
                    raise
                damaged[newest] = error
                continue
            for path, error in damaged.items():
                where = "the store has a valid copy"
                if path != newest:
                    where = f"its remaining files are in {await _in_thread(partial(set_aside, path))}"
                logger.warning("continuing from %s: %s; %s", newest.name, error, where)
            return newest
        if damaged:
            raise next(iter(damaged.values()))
        return None

    async def _newest_anywhere(self, damaged: Collection[Path]) -> Path | None:
        """The checkpoint with the highest step that is not known to be damaged. If only the store
        has it, it is fetched.
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
            logger.warning("continuing from %s: %s", here, error)
            return here
        if there is None or (here is not None and (step_of(here.name) or 0) >= (step_of(there) or 0)):
            return here
        return await _in_thread(lambda: mirror.store.fetch(there, self._directory))

    def _remove_partials(self) -> None:
        """Delete incomplete checkpoints of processes that were killed while writing."""
        for path in self._directory.glob(partial_of(Path("step-*")).name):
            remove_partial(path)

    def _prune(self) -> None:
        in_use = self._mirror.in_use() if self._mirror else ()
        for old in complete(self._directory)[: -self._keep]:
            if old not in in_use:
                remove(old)


async def _in_thread(function: Callable[[], T]) -> T:
    """Run a blocking function in a thread. It is awaited even if the caller is cancelled, because nothing may
    continue to write files that a restore is about to read.
    """
    running = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise
