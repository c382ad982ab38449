"""Checkpoints: the parts' states composed, the manifest last, the directory renamed into place.

    checkpoints/step-000040/
        rank-0-of-2...          what the learner ranks wrote
        loop.json               step, group ids, position in the prompts, groups outstanding
        manifest.json           size and SHA-256 of every other file; written last

A directory without a valid manifest is not a checkpoint. A failed save leaves the earlier ones as they were.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import CheckpointError
from orchestrator.training.stages import LearnerStage, Span

MANIFEST = "manifest.json"
LOOP_STATE = "loop.json"
FORMAT = 1


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
    keeping the newest `keep`.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        if keep < 1:
            raise ValueError(f"keep must be 1 or more, got {keep}")
        self._directory, self._keep = directory, keep

    async def save(self, learner: LearnerStage, state: LoopState) -> tuple[Span, ...]:
        """Write the checkpoint of `state.step`. Raises CheckpointError if the disk refuses; earlier
        checkpoints stay.
        """
        final = self._directory / f"step-{state.step:06d}"
        if final.exists():
            return ()
        partial = final.with_name(f".{final.name}.partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            spans = await learner.save(partial)
            _write(partial / LOOP_STATE, asdict(state))
            _write(partial / MANIFEST, {"format": FORMAT, "step": state.step, "files": _digests(partial)})
            partial.rename(final)
            _sync_directory(self._directory)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint of step {state.step} could not be written to {self._directory}: {error}"
            ) from error
        self._prune()
        return spans

    async def restore(self, learner: LearnerStage) -> LoopState | None:
        """Load the newest checkpoint into the learner; None if there is none. Raises CheckpointError if its
        files don't match its manifest.
        """
        newest = self.newest()
        if newest is None:
            return None
        verify(newest)
        await learner.load(newest)
        raw = json.loads((newest / LOOP_STATE).read_text())
        outstanding = tuple((int(group_id), str(prompt_id)) for group_id, prompt_id in raw["outstanding"])
        return LoopState(raw["step"], raw["next_group"], outstanding, raw["prompts"])

    def newest(self) -> Path | None:
        """The checkpoint with the highest step."""
        return max(self._complete(), default=None)

    def _complete(self) -> list[Path]:
        return sorted(path for path in self._directory.glob("step-*") if (path / MANIFEST).exists())

    def _prune(self) -> None:
        for old in self._complete()[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)


def verify(checkpoint: Path) -> None:
    """Raises CheckpointError, naming the file, if a file of the checkpoint is missing, has another size or
    another digest.
    """
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"{checkpoint} has format {manifest['format']}, this version reads format {FORMAT}"
        )
    found = _digests(checkpoint)
    for name, expected in manifest["files"].items():
        if found.get(name) != expected:
            raise CheckpointError(
                f"{checkpoint / name} differs from its manifest: expected {expected}, found {found.get(name)}"
            )


def _digests(directory: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {
        str(path.relative_to(directory)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in files
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
