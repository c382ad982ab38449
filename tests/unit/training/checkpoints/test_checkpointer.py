"""Single checkpoints. tests/simulation/test_checkpointing.py tests them within runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.clock import FakeClock
from orchestrator.errors import CheckpointConflictError, CheckpointError
from orchestrator.training.checkpoints import checkpointer as checkpoint_module
from orchestrator.training.checkpoints.checkpointer import Checkpointer, LoopState
from orchestrator.training.checkpoints.format import MANIFEST, complete, name_of, remove, step_of
from orchestrator.training.checkpoints.mirror import CheckpointMirror
from orchestrator.training.checkpoints.store import DirectoryStore
from orchestrator.training.simulation.stages import Draws, Faults, SimulatedLearner, Timing


def learner(*trained: int) -> SimulatedLearner:
    return SimulatedLearner(Draws(0), Timing(), Faults(), FakeClock(), list(trained))


def state(step: int) -> LoopState:
    return LoopState(step, 10 * step, ((7, "task/train/7"), (9, "task/train/9")), {"position": 3})


@pytest.mark.parametrize("step", [0, 40, 999_999, 1_000_000])
def test_names_and_steps(step: int) -> None:
    assert step_of(name_of(step)) == step


@pytest.mark.parametrize("name", ["", "step-", "step-12", "step-000040.partial", ".step-000040", "latest"])
def test_invalid_checkpoint_names(name: str) -> None:
    assert step_of(name) is None


def test_at_least_one_checkpoint_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 0"):
        Checkpointer(tmp_path, keep=0)


def test_a_saved_checkpoint_is_restored(tmp_path: Path) -> None:
    async def main() -> None:
        checkpointer = Checkpointer(tmp_path / "checkpoints", keep=2)
        assert await checkpointer.restore(learner()) is None
        await checkpointer.save(learner(1, 2, 3), state(4))
        fresh = learner()
        assert await checkpointer.restore(fresh) == state(4)
        assert fresh.trained == [1, 2, 3]

    asyncio.run(main())


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    async def main() -> None:
        checkpointer = Checkpointer(tmp_path, keep=2)
        await checkpointer.save(learner(1), state(4))
        await checkpointer.save(learner(2), state(4))
        fresh = learner()
        await checkpointer.restore(fresh)
        assert fresh.trained == [1]

    asyncio.run(main())


def test_the_newest_is_the_one_with_the_highest_step(tmp_path: Path) -> None:
    async def main() -> None:
        checkpointer = Checkpointer(tmp_path, keep=9)
        for step in (999_999, 1_000_000, 5):
            await checkpointer.save(learner(step), state(step))
        assert [path.name for path in complete(tmp_path)] == ["step-000005", "step-999999", "step-1000000"]
        restored = await checkpointer.restore(learner())
        assert restored is not None
        assert restored.step == 1_000_000

    asyncio.run(main())


def test_unrelated_files_in_the_directory_are_ignored(tmp_path: Path) -> None:
    for name in ("step-other", "step-000001.partial", "step-000002", "notes"):
        (tmp_path / name).mkdir()
        if name != "step-000002":
            (tmp_path / name / MANIFEST).write_text("{}")
    assert complete(tmp_path) == []


def test_an_interrupted_removal_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(Checkpointer(tmp_path, keep=1).save(learner(1), state(1)))
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    remove(tmp_path / "step-000001")
    assert (tmp_path / "step-000001").exists()
    assert complete(tmp_path) == []


def test_files_in_folders_are_refused_when_they_are_written(tmp_path: Path) -> None:
    class Sharded(SimulatedLearner):
        async def save(self, directory: Path, step: int) -> tuple[()]:
            (directory / "ranks").mkdir()
            (directory / "ranks" / "0").write_text("weights")
            return ()

    sharded = Sharded(Draws(0), Timing(), Faults(), FakeClock())
    with pytest.raises(CheckpointError, match="'ranks/0', which is not a plain file name"):
        asyncio.run(Checkpointer(tmp_path, keep=1).save(sharded, state(1)))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_no_partial_checkpoint(tmp_path: Path) -> None:
    class Failing(SimulatedLearner):
        async def save(self, directory: Path, step: int) -> tuple[()]:
            (directory / "half").write_text("half")
            raise CheckpointError("rank 1 could not write its shard")

    failing = Failing(Draws(0), Timing(), Faults(), FakeClock())
    with pytest.raises(CheckpointError, match="rank 1"):
        asyncio.run(Checkpointer(tmp_path, keep=1).save(failing, state(1)))
    assert list(tmp_path.iterdir()) == []


def test_a_cancelled_save_leaves_no_writing_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, leave, left = threading.Event(), threading.Event(), threading.Event()
    real: Callable[..., None] = checkpoint_module.commit

    def slow(*arguments: object) -> None:
        entered.set()
        assert leave.wait(300)
        real(*arguments)
        left.set()

    monkeypatch.setattr(checkpoint_module, "commit", slow)

    async def main() -> None:
        saving = asyncio.ensure_future(Checkpointer(tmp_path, keep=1).save(learner(1), state(1)))
        await asyncio.to_thread(entered.wait, 300)
        saving.cancel()
        await asyncio.sleep(0)
        assert not saving.done()
        leave.set()
        with pytest.raises(asyncio.CancelledError):
            await saving
        assert left.is_set()

    asyncio.run(main())


class SlowStore(DirectoryStore):
    """Every put waits until `go` is released once more."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, keep=9)
        self.go = threading.Semaphore(0)
        self.started = threading.Semaphore(0)

    def put(self, checkpoint: Path) -> None:
        self.started.release()
        assert self.go.acquire(timeout=300)
        super().put(checkpoint)


def test_saving_does_not_wait_for_the_store(tmp_path: Path) -> None:
    """A checkpoint that is being copied, or waits for that, is not pruned; one
    that was superseded is not copied.
    """

    async def main() -> None:
        store = SlowStore(tmp_path / "store")
        mirror = CheckpointMirror(store, failure_budget=0, retry_seconds=0.0)
        checkpointer = Checkpointer(tmp_path / "here", keep=1, mirror=mirror)
        for step in (1, 2, 3):
            await checkpointer.save(learner(step), state(step))
            if step == 1:
                await asyncio.to_thread(store.started.acquire)
        assert [path.name for path in complete(tmp_path / "here")] == ["step-000001", "step-000003"]
        assert complete(tmp_path / "store") == []
        store.go.release(2)
        await checkpointer.flush()
        assert [path.name for path in complete(tmp_path / "store")] == ["step-000001", "step-000003"]
        assert list(mirror.in_use()) == []

    asyncio.run(main())


def test_a_conflict_is_never_tolerated(tmp_path: Path) -> None:
    class Taken(DirectoryStore):
        def put(self, checkpoint: Path) -> None:
            raise CheckpointConflictError("another process writes")

    async def main() -> None:
        mirror = CheckpointMirror(Taken(tmp_path / "store", 1), failure_budget=99, retry_seconds=0.0)
        checkpointer = Checkpointer(tmp_path / "here", 1, mirror)
        await checkpointer.save(learner(1), state(1))
        with pytest.raises(CheckpointConflictError):
            await checkpointer.flush()
        with pytest.raises(CheckpointConflictError):
            await checkpointer.save(learner(2), state(2))

    asyncio.run(main())


def test_a_bug_in_a_store_is_not_tolerated(tmp_path: Path) -> None:
    class Broken(DirectoryStore):
        def put(self, checkpoint: Path) -> None:
            raise TypeError("a bug")

    async def main() -> None:
        mirror = CheckpointMirror(Broken(tmp_path / "store", 1), failure_budget=99, retry_seconds=0.0)
        checkpointer = Checkpointer(tmp_path / "here", 1, mirror)
        await checkpointer.save(learner(1), state(1))
        with pytest.raises(TypeError, match="a bug"):
            await checkpointer.flush()

    asyncio.run(main())


def test_flush_without_a_store_does_nothing(tmp_path: Path) -> None:
    asyncio.run(Checkpointer(tmp_path, keep=1).flush())
    assert not list(tmp_path.iterdir())
