"""The contract of the CheckpointStore port, which runs on every implementation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import pytest

from orchestrator.errors import CheckpointConflictError, CheckpointError
from orchestrator.training.checkpoints.format import MANIFEST, commit, name_of, verify
from orchestrator.training.checkpoints.store import CheckpointStore


def make_checkpoint(directory: Path, step: int, shard: bytes = b"weights") -> Path:
    """A checkpoint with the file of one learner rank."""
    partial, final = directory / "partial", directory / name_of(step)
    partial.mkdir(parents=True)
    (partial / "rank-0-of-1.bin").write_bytes(shard * 1000)
    commit(partial, final, {"step": step})
    return final


def content(checkpoint: Path) -> dict[str, bytes]:
    files = (path for path in checkpoint.rglob("*") if path.is_file())
    return {path.relative_to(checkpoint).as_posix(): path.read_bytes() for path in files}


class StoreUnderTest(ABC):
    """A place that stores the checkpoints of one run, and the processes that open it."""

    @abstractmethod
    def open(self, keep: int = 2) -> CheckpointStore:
        """Open the store as another process would."""

    @abstractmethod
    def damage(self, name: str, file: str) -> None:
        """Change one byte of a file of a stored checkpoint."""

    @abstractmethod
    def lose_manifest(self, name: str) -> None:
        """Simulate that the process died just before it wrote the manifest."""

    @abstractmethod
    def break_down(self) -> None:
        """Make every call fail from now on."""


class CheckpointStoreContract:
    """Subclass it with a fixture `under_test`."""

    def test_an_empty_store_has_no_newest_checkpoint(self, under_test: StoreUnderTest) -> None:
        assert under_test.open().newest() is None

    def test_a_stored_checkpoint_is_fetched(self, under_test: StoreUnderTest, tmp_path: Path) -> None:
        checkpoint = make_checkpoint(tmp_path / "here", 40)
        under_test.open().put(checkpoint)
        store = under_test.open()
        assert store.newest() == "step-000040"
        fetched = store.fetch("step-000040", tmp_path / "there")
        assert fetched == tmp_path / "there" / "step-000040"
        assert content(fetched) == content(checkpoint)
        verify(fetched)
        assert [path.name for path in (tmp_path / "there").iterdir()] == ["step-000040"]

    def test_the_newest_has_the_highest_step(self, under_test: StoreUnderTest, tmp_path: Path) -> None:
        store = under_test.open(keep=3)
        for step in (999_999, 1_000_000):
            store.put(make_checkpoint(tmp_path, step))
        assert store.newest() == "step-1000000"

    def test_only_the_newest_are_kept(self, under_test: StoreUnderTest, tmp_path: Path) -> None:
        store = under_test.open(keep=2)
        for step in (10, 20, 30):
            store.put(make_checkpoint(tmp_path / "here", step))
        assert store.newest() == "step-000030"
        store.fetch("step-000020", tmp_path / "there")
        with pytest.raises(CheckpointError, match="step-000010"):
            store.fetch("step-000010", tmp_path / "there")
        assert not (tmp_path / "there" / "step-000010").exists()

    def test_the_same_checkpoint_again_is_a_success(self, under_test: StoreUnderTest, tmp_path: Path) -> None:
        checkpoint = make_checkpoint(tmp_path, 40)
        store = under_test.open()
        store.put(checkpoint)
        store.put(checkpoint)
        under_test.open().put(checkpoint)
        assert store.newest() == "step-000040"

    def test_another_checkpoint_of_the_same_step_is_a_conflict(
        self, under_test: StoreUnderTest, tmp_path: Path
    ) -> None:
        mine = make_checkpoint(tmp_path / "mine", 40)
        under_test.open().put(mine)
        with pytest.raises(CheckpointConflictError, match="Another process"):
            under_test.open().put(make_checkpoint(tmp_path / "theirs", 40, b"other weights"))
        fetched = under_test.open().fetch("step-000040", tmp_path / "there")
        assert content(fetched) == content(mine)

    def test_a_writer_that_missed_the_last_put_is_rejected(
        self, under_test: StoreUnderTest, tmp_path: Path
    ) -> None:
        old, new = under_test.open(), under_test.open()
        old.put(make_checkpoint(tmp_path, 10))
        assert new.newest() == "step-000010"
        new.put(make_checkpoint(tmp_path, 20))
        with pytest.raises(CheckpointConflictError, match="Another process"):
            old.put(make_checkpoint(tmp_path, 15))
        new.put(make_checkpoint(tmp_path, 30))

    def test_only_one_of_two_concurrent_writers_succeeds(
        self, under_test: StoreUnderTest, tmp_path: Path
    ) -> None:
        one, two = under_test.open(), under_test.open()
        assert one.newest() is two.newest() is None
        one.put(make_checkpoint(tmp_path, 10))
        with pytest.raises(CheckpointConflictError):
            two.put(make_checkpoint(tmp_path, 11))

    @pytest.mark.parametrize("file", ["loop.json", "rank-0-of-1.bin"])
    def test_a_damaged_copy_is_rejected_by_name(
        self, file: str, under_test: StoreUnderTest, tmp_path: Path
    ) -> None:
        under_test.open().put(make_checkpoint(tmp_path / "here", 40))
        under_test.damage("step-000040", file)
        with pytest.raises(CheckpointError, match=f"{file} differs from its manifest"):
            under_test.open().fetch("step-000040", tmp_path / "there")
        assert list((tmp_path / "there").iterdir()) == []

    def test_a_damaged_checkpoint_is_not_stored(self, under_test: StoreUnderTest, tmp_path: Path) -> None:
        checkpoint = make_checkpoint(tmp_path, 40)
        (checkpoint / "loop.json").write_text("{}")
        with pytest.raises(CheckpointError, match=r"loop.json differs"):
            under_test.open().put(checkpoint)
        assert under_test.open().newest() is None

    def test_an_incomplete_copy_does_not_count(self, under_test: StoreUnderTest, tmp_path: Path) -> None:
        first, second = make_checkpoint(tmp_path / "here", 10), make_checkpoint(tmp_path / "here", 20)
        store = under_test.open()
        store.put(first)
        store.put(second)
        under_test.lose_manifest("step-000020")
        assert under_test.open().newest() == "step-000010"
        again = under_test.open()
        again.newest()
        again.put(second)
        assert again.newest() == "step-000020"
        assert content(again.fetch("step-000020", tmp_path / "there")) == content(second)

    def test_an_unreachable_store_is_an_error(self, under_test: StoreUnderTest, tmp_path: Path) -> None:
        checkpoint = make_checkpoint(tmp_path, 10)
        store = under_test.open()
        store.put(checkpoint)
        under_test.break_down()
        with pytest.raises(CheckpointError, match="could not be"):
            store.put(make_checkpoint(tmp_path, 20))
        with pytest.raises(CheckpointError, match="could not be"):
            store.newest()
        with pytest.raises(CheckpointError, match="could not be"):
            store.fetch(checkpoint.name, tmp_path / "there")

    def test_a_malformed_manifest_is_an_error(self, under_test: StoreUnderTest, tmp_path: Path) -> None:
        checkpoint = make_checkpoint(tmp_path, 10)
        (checkpoint / MANIFEST).write_text("[]")
        with pytest.raises(CheckpointError, match=MANIFEST):
            under_test.open().put(checkpoint)
