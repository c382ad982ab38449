"""A process that writes one checkpoint after the other in the background is killed at random moments."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from pathlib import Path

import pytest

from orchestrator.clock import SystemClock
from orchestrator.training.checkpoints.checkpointer import Checkpointer, LoopState
from orchestrator.training.checkpoints.format import MANIFEST, complete, verify
from orchestrator.training.simulation.stages import TRAINED, Draws, Faults, SimulatedLearner, Timing

pytestmark = pytest.mark.slow


class _SlowDisk(SimulatedLearner):
    """Writes its state slowly, while it is changed."""

    async def write(self, directory: Path) -> None:
        copied = list(self._copied)
        for group in copied:
            with (directory / TRAINED).open("a") as file:
                file.write(f"{group}\n")
            await asyncio.sleep(0.002)


def _train(directory: str) -> None:
    async def main() -> None:
        learner = _SlowDisk(Draws(0), Timing(), Faults(), SystemClock())
        checkpoints = Checkpointer(Path(directory), keep=2, asynchronous=True)
        restored = await checkpoints.restore(learner)
        step = 0 if restored is None else restored.step
        while True:
            step += 1
            learner.trained.append(step)
            await checkpoints.save(learner, LoopState(step, step, (), {}))
            learner.trained.append(-step)
            await asyncio.sleep(0.002)
            learner.trained.pop()

    asyncio.run(main())


def test_a_kill_at_any_moment_leaves_the_last_complete_checkpoint(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    newest = 0
    for life in range(8):
        process = context.Process(target=_train, args=(str(tmp_path),))
        process.start()
        _wait_for_another(tmp_path, newest)
        time.sleep(0.003 * life)
        process.kill()
        process.join()
        checkpoint = complete(tmp_path)[-1]
        verify(checkpoint)
        step = int(checkpoint.name.removeprefix("step-"))
        assert (checkpoint / TRAINED).read_text().split() == [str(group) for group in range(1, step + 1)]
        assert step > newest
        assert len(list(tmp_path.glob("*/" + MANIFEST))) <= 4  # `keep`, one to be pruned, one under way
        newest = step


def _wait_for_another(directory: Path, newest: int) -> None:
    deadline = time.monotonic() + 300
    while not (found := complete(directory)) or int(found[-1].name.removeprefix("step-")) < newest + 2:
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.01)
