"""Checkpoints within a run: a full disk, changed files, an unreachable store."""

import asyncio
import errno
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import (
    CheckpointConflictError,
    CheckpointError,
    CheckpointFormatError,
    DrainedError,
    NonFiniteError,
)
from orchestrator.training.checkpoints import format as checkpoint_format
from orchestrator.training.checkpoints.format import MANIFEST, complete, verify
from orchestrator.training.checkpoints.mirror import CheckpointMirror
from orchestrator.training.checkpoints.store import CheckpointStore, DirectoryStore
from orchestrator.training.records import StepReport
from orchestrator.training.simulation.run import Simulation, SimulationSettings, Stop, assemble, simulate
from orchestrator.training.simulation.stages import TRAINED, Faults, SimulatedLearner, Timing
from orchestrator.training.simulation.virtual_time import VirtualClock, run_in_virtual_time
from tests.simulation.expected import MANY_FAULTS, assert_complete

BASE = SimulationSettings(seed=3, steps=20, max_staleness=1, prompts_per_step=8, checkpoint_every=5)
DRAINED = DrainedError("asked to stop")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def fill_while_the_learner_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("save", "write"):
        real = getattr(SimulatedLearner, name)

        async def save(
            self: SimulatedLearner,
            directory: Path,
            *step: int,
            real: Callable[..., Awaitable[object]] = real,
        ) -> object:
            if "15" in directory.name:
                (directory / TRAINED).write_text("half of it")
                no_space()
            return await real(self, directory, *step)

        monkeypatch.setattr(SimulatedLearner, name, save)


def fill_before_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    real = checkpoint_format.write_json

    def write_json(path: Path, content: object) -> None:
        if path.name == MANIFEST and "15" in path.parent.name:
            no_space()
        real(path, content)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(checkpoint_format, "write_json", write_json)


def fill_at_the_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if "15" in target.name:
            no_space()
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["waited for", "asynchronous"])
@pytest.mark.parametrize(
    "fill_the_disk", [fill_while_the_learner_saves, fill_before_the_manifest, fill_at_the_rename]
)
def test_a_full_disk_keeps_the_last_valid_checkpoint(
    fill_the_disk: Callable[[pytest.MonkeyPatch], None],
    asynchronous: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = replace(BASE, asynchronous_checkpoints=asynchronous)
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        with pytest.raises(CheckpointError, match=r"step 15 .*No space left"):
            simulate(settings, tmp_path)
    assert names(tmp_path / "checkpoints") == ["step-000005", "step-000010"]
    assert_complete(simulate(settings, tmp_path, resume=True), settings, tmp_path)


@pytest.mark.parametrize("max_staleness", [0, 3])
@pytest.mark.parametrize("write_seconds", [0.0, 1.5, 40.0])
def test_training_continues_while_a_checkpoint_is_written(
    write_seconds: float, max_staleness: int, tmp_path: Path
) -> None:
    """A checkpoint that is due before the previous one is written waits for it, so that none is left out."""
    settings = replace(BASE, max_staleness=max_staleness, timing=Timing(write=write_seconds))
    run = simulate(settings, tmp_path)
    assert_complete(run, settings, tmp_path)
    seconds = {(kind, text): ns / 1e9 for ns, kind, text in run.trace.lines}
    steps = {int(text.split()[0]): at for (kind, text), at in seconds.items() if kind == "step"}
    written = {step: seconds["checkpoint", str({"step": step})] for step in (5, 10, 15, 20)}
    for step in (5, 10, 15):
        assert written[step] >= steps[step] + write_seconds - 1e-6
        assert steps[step + 1] < written[step] or write_seconds < 40
        assert written[step] <= written[step + 5] - write_seconds + 1e-6


def test_a_failure_of_the_last_checkpoint_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_while_the_learner_saves(monkeypatch)
    with pytest.raises(CheckpointError, match=r"step 15 .*No space left"):
        simulate(replace(BASE, steps=15), tmp_path)
    assert names(tmp_path / "checkpoints") == ["step-000005", "step-000010"]


def test_a_failed_checkpoint_ends_the_run_at_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_while_the_learner_saves(monkeypatch)

    async def main() -> Simulation:
        simulation = assemble(BASE, tmp_path, VirtualClock())
        with pytest.raises(CheckpointError, match="step 15"):
            await simulation.loop.run()
        return simulation

    assert run_in_virtual_time(main()).trace.reports[-1].step == 16


@pytest.mark.parametrize("at_seconds", [9.0, 9.5, 10.0, 11.0])
def test_a_stopped_run_waits_for_the_checkpoint_in_progress(at_seconds: float, tmp_path: Path) -> None:
    settings = replace(BASE, timing=Timing(write=100.0))
    with pytest.raises(DrainedError):
        simulate(settings, tmp_path, stop=Stop(at_seconds, DRAINED))
    assert not list((tmp_path / "checkpoints").glob(".*"))
    resumed = simulate(settings, tmp_path, resume=True)
    assert_complete(resumed, settings, tmp_path)


def test_a_failing_run_completes_the_checkpoint_in_progress(tmp_path: Path) -> None:
    settings = replace(BASE, timing=Timing(write=100.0), faults=Faults(non_finite_step=6))
    with pytest.raises(NonFiniteError):
        simulate(settings, tmp_path)
    assert names(tmp_path / "checkpoints") == ["step-000005"]


def test_a_cancelled_run_abandons_the_checkpoint_in_progress(tmp_path: Path) -> None:
    settings = replace(BASE, timing=Timing(write=100.0))

    async def main() -> float:
        simulation = assemble(settings, tmp_path, VirtualClock())
        running = asyncio.ensure_future(simulation.loop.run())
        while not list((tmp_path / "checkpoints").glob(".*")):
            await asyncio.sleep(0.1)
        running.cancel()
        before = asyncio.get_running_loop().time()
        await asyncio.wait({running})
        assert running.cancelled()
        return asyncio.get_running_loop().time() - before

    assert run_in_virtual_time(main()) == 0
    assert names(tmp_path / "checkpoints") == []


def test_leftovers_of_a_killed_write_are_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".step-000007.partial").mkdir(parents=True)
    assert_complete(simulate(BASE, tmp_path, resume=True), BASE, tmp_path)
    assert names(tmp_path / "checkpoints") == ["step-000015", "step-000020"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    simulate(replace(BASE, keep_checkpoints=3), tmp_path)
    assert names(tmp_path / "checkpoints") == ["step-000010", "step-000015", "step-000020"]


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("tamper", [change, shorten, Path.unlink])
@pytest.mark.parametrize("name", [TRAINED, "loop.json"])
def test_a_damaged_checkpoint_is_set_aside_and_the_previous_one_is_used(
    name: str, tamper: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    simulate(BASE, tmp_path)
    before, newest = complete(tmp_path / "checkpoints")
    tamper(newest / name)
    left = {path.name for path in newest.iterdir()}
    settings = replace(BASE, steps=25)
    resumed = simulate(settings, tmp_path, resume=True)
    assert_complete(resumed, settings, tmp_path)
    assert resumed.trace.reports[0].step == 16
    assert f"continuing from {before.name}: {newest}/{name} differs from its manifest" in caplog.text
    aside = newest.with_name("step-000020.damaged")
    assert f"its remaining files are in {aside}" in caplog.text
    assert {path.name for path in aside.iterdir()} == left
    assert names(tmp_path / "checkpoints") == ["step-000020", aside.name, "step-000025"]
    verify(newest)


def test_a_run_with_only_damaged_checkpoints_does_not_start_again(tmp_path: Path) -> None:
    simulate(BASE, tmp_path)
    for checkpoint in complete(tmp_path / "checkpoints"):
        change(checkpoint / TRAINED)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=rf"step-000020/{TRAINED} differs from its manifest"):
            simulate(replace(BASE, steps=25), tmp_path, resume=True)
        assert names(tmp_path / "checkpoints") == ["step-000015", "step-000020"]


def test_a_checkpoint_of_another_version_is_neither_read_nor_set_aside(tmp_path: Path) -> None:
    """Using the previous one would repeat steps that are not lost."""
    simulate(BASE, tmp_path)
    newest = tmp_path / "checkpoints" / "step-000020" / MANIFEST
    newest.write_text(json.dumps(json.loads(newest.read_text()) | {"format": 2}))
    with pytest.raises(CheckpointFormatError, match=r"step-000020/manifest\.json has format 2"):
        simulate(replace(BASE, steps=25), tmp_path, resume=True)
    assert names(tmp_path / "checkpoints") == ["step-000015", "step-000020"]


def test_a_rebuilt_learner_skips_a_damaged_checkpoint(tmp_path: Path) -> None:
    """The run continues as after any loss, from one checkpoint further back."""

    async def main() -> Simulation:
        simulation = assemble(BASE, tmp_path, VirtualClock())
        on_step = simulation.trace.on_step

        def damage(report: StepReport) -> None:
            on_step(report)
            if report.step == 13 and simulation.learner.rebuilt == 0:
                change(tmp_path / "checkpoints" / "step-000010" / TRAINED)
                simulation.learner.faults = Faults(learner_death=1.0)
            if report.step == 6 and simulation.learner.rebuilt:
                assert len(simulation.learner.trained) == 6 * BASE.prompts_per_step

        simulation.trace.on_step = damage
        rebuild = simulation.learner.rebuild

        async def healthy() -> None:
            simulation.learner.faults = Faults()
            await rebuild()

        simulation.learner.rebuild = healthy  # pyright: ignore[reportAttributeAccessIssue]
        await simulation.loop.run()
        return simulation

    simulation = run_in_virtual_time(main())
    assert [report.step for report in simulation.trace.reports].count(6) == 2
    assert_complete(simulation, BASE, tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"files": {"loop.json": {}}}', '{"format": 1, "files": {}}'],
)
def test_a_changed_manifest_is_reported(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    simulate(BASE, tmp_path)
    manifest = complete(tmp_path / "checkpoints")[-1] / MANIFEST
    manifest.write_text(content)
    assert simulate(BASE, tmp_path, resume=True).trace.reports[0].step == 16
    assert f"continuing from step-000015: {manifest}" in caplog.text


def test_a_partially_removed_checkpoint_does_not_count(tmp_path: Path) -> None:
    simulate(BASE, tmp_path)
    (tmp_path / "checkpoints" / "step-000020" / MANIFEST).unlink()
    resumed = simulate(BASE, tmp_path, resume=True)
    assert_complete(resumed, BASE, tmp_path)
    assert resumed.trace.reports[0].step == 16
    assert names(tmp_path / "checkpoints") == ["step-000015", "step-000020"]
    assert json.loads((tmp_path / "checkpoints" / "step-000020" / MANIFEST).read_text())["step"] == 20


def mirror_to(store: CheckpointStore, failure_budget: int = 2) -> CheckpointMirror:
    return CheckpointMirror(store, failure_budget, retry_seconds=1.0)


@pytest.mark.parametrize("max_staleness", [0, 3])
def test_a_new_machine_continues_from_the_store(max_staleness: int, tmp_path: Path) -> None:
    settings = replace(BASE, max_staleness=max_staleness, faults=MANY_FAULTS, dynamic_sampling=True)
    store = tmp_path / "store"
    with pytest.raises(DrainedError):
        simulate(
            settings, tmp_path / "old", stop=Stop(45.0, DRAINED), mirror=mirror_to(DirectoryStore(store, 2))
        )
    resumed = simulate(settings, tmp_path / "new", resume=True, mirror=mirror_to(DirectoryStore(store, 2)))
    assert_complete(resumed, settings, tmp_path / "new")
    assert resumed.trace.reports[0].step > 1
    assert [path.name for path in complete(store)] == ["step-000015", "step-000020"]


def test_the_newer_checkpoint_of_disk_and_store_is_used(tmp_path: Path) -> None:
    store, first, second = (tmp_path / name for name in ("store", "first", "second"))
    with pytest.raises(DrainedError):
        simulate(BASE, first, stop=Stop(8.0, DRAINED), mirror=mirror_to(DirectoryStore(store, 2)))
    simulate(BASE, second, resume=True, mirror=mirror_to(DirectoryStore(store, 2)))
    back = simulate(BASE, first, resume=True, mirror=mirror_to(DirectoryStore(store, 2)))
    assert back.trace.reports == []
    assert (first / "model" / TRAINED).read_text() == (second / "model" / TRAINED).read_text()


def test_a_damaged_checkpoint_is_replaced_by_the_copy_in_the_store(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, run = tmp_path / "store", tmp_path / "run"
    simulate(BASE, run, mirror=mirror_to(DirectoryStore(store, 2)))
    newest = complete(run / "checkpoints")[-1]
    change(newest / TRAINED)
    settings = replace(BASE, steps=25)
    resumed = simulate(settings, run, resume=True, mirror=mirror_to(DirectoryStore(store, 2)))
    assert_complete(resumed, settings, run)
    assert resumed.trace.reports[0].step == 21
    assert f"{newest}/{TRAINED} differs from its manifest" in caplog.text
    assert "the store has a valid copy" in caplog.text
    assert names(run / "checkpoints") == ["step-000020", "step-000025"]


def test_a_damaged_checkpoint_is_not_skipped_while_the_store_is_unreachable(tmp_path: Path) -> None:
    """The store may have a good copy."""
    simulate(BASE, tmp_path / "run")
    change(tmp_path / "run" / "checkpoints" / "step-000020" / TRAINED)
    deaf = DownStore(tmp_path / "store", range(0), deaf=True)
    with pytest.raises(CheckpointError, match="connection refused"):
        simulate(replace(BASE, steps=25), tmp_path / "run", resume=True, mirror=mirror_to(deaf))
    assert names(tmp_path / "run" / "checkpoints") == ["step-000015", "step-000020"]


class DownStore(DirectoryStore):
    """A store that fails for the puts whose numbers are in `down`, and for all queries while `deaf`."""

    def __init__(self, directory: Path, down: range, deaf: bool = False) -> None:
        super().__init__(directory, keep=2)
        self._down, self._deaf, self.puts = down, deaf, 0

    def put(self, checkpoint: Path) -> None:
        self.puts += 1
        if self.puts - 1 in self._down:
            raise CheckpointError("connection refused")
        super().put(checkpoint)

    def newest(self) -> str | None:
        if self._deaf:
            raise CheckpointError("connection refused")
        return super().newest()


@pytest.mark.parametrize("down", [range(1), range(2), range(2, 4)], ids=str)
def test_a_store_may_be_unreachable_for_a_while(down: range, tmp_path: Path) -> None:
    store = DownStore(tmp_path / "store", down)
    simulation = simulate(BASE, tmp_path / "run", mirror=mirror_to(store))
    assert_complete(simulation, BASE, tmp_path / "run")
    assert complete(tmp_path / "store")[-1].name == "step-000020"


def test_a_drained_run_waits_until_its_checkpoint_is_in_the_store(tmp_path: Path) -> None:
    store = DownStore(tmp_path / "store", range(2))
    settings = replace(BASE, checkpoint_every=0)
    with pytest.raises(DrainedError):
        simulate(settings, tmp_path / "run", stop=Stop(8.0, DRAINED), mirror=mirror_to(store))
    assert store.puts == 3
    assert [path.name for path in complete(tmp_path / "store")] == names(tmp_path / "run" / "checkpoints")


def test_a_store_that_stays_unreachable_ends_the_run(tmp_path: Path) -> None:
    store = DownStore(tmp_path / "store", range(100))
    with pytest.raises(CheckpointError, match=r"copied 3 times in a row; last: connection refused"):
        simulate(replace(BASE, steps=100), tmp_path / "run", mirror=mirror_to(store))
    assert store.puts == 3
    assert complete(tmp_path / "run" / "checkpoints")[-1].name == "step-000020"


def test_a_last_checkpoint_that_is_not_stored_is_an_error(tmp_path: Path) -> None:
    store = DownStore(tmp_path / "store", range(3, 100))
    with pytest.raises(CheckpointError, match="connection refused"):
        simulate(BASE, tmp_path / "run", mirror=mirror_to(store))
    assert (tmp_path / "run" / "model" / TRAINED).exists()


def test_a_store_that_is_unreachable_at_the_start_is_an_error(tmp_path: Path) -> None:
    deaf = DownStore(tmp_path / "store", range(0), deaf=True)
    with pytest.raises(CheckpointError, match="connection refused"):
        simulate(BASE, tmp_path / "new", resume=True, mirror=mirror_to(deaf))
    with pytest.raises(DrainedError):
        simulate(BASE, tmp_path / "old", stop=Stop(8.0, DRAINED))
    resumed = simulate(BASE, tmp_path / "old", resume=True, mirror=mirror_to(deaf))
    assert_complete(resumed, BASE, tmp_path / "old")


def test_only_one_of_two_controllers_of_a_run_continues(tmp_path: Path) -> None:
    """The first controller is considered dead and restarted elsewhere, but still runs."""
    settings = replace(BASE, steps=10)
    first = DirectoryStore(tmp_path / "store", 2)
    simulate(settings, tmp_path / "first", mirror=mirror_to(first))
    longer = replace(BASE, steps=20)
    simulate(
        longer, tmp_path / "second", resume=True, mirror=mirror_to(DirectoryStore(tmp_path / "store", 2))
    )

    class Stale(DirectoryStore):
        """The first controller's store in the state of its last query."""

        def newest(self) -> str | None:
            return None

        def put(self, checkpoint: Path) -> None:
            first.put(checkpoint)

    with pytest.raises(CheckpointConflictError, match="Another process"):
        simulate(longer, tmp_path / "first", resume=True, mirror=mirror_to(Stale(tmp_path / "store", 2)))
