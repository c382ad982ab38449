"""What a checkpoint is on disk: a directory `step-000040` whose manifest was written last.

    step-000040/
        rank-0-of-2...          what the learner ranks wrote
        loop.json               what the loop itself must know
        manifest.json           size and SHA-256 of every other file

A directory without a manifest is not a checkpoint. Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import CheckpointError

MANIFEST = "manifest.json"
LOOP_STATE = "loop.json"
FORMAT = 1
NAME = re.compile(r"step-([0-9]{6,20})")
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
LONGEST_NAME = 255


def name_of(step: int) -> str:
    """`step-000040`."""
    return f"step-{step:06d}"


def step_of(name: str) -> int | None:
    """Inverse of `name_of`; None if it is no checkpoint's name."""
    match = NAME.fullmatch(name)
    return int(match.group(1)) if match else None


def partial_of(checkpoint: Path) -> Path:
    """Where a checkpoint is written before it is renamed into place."""
    return checkpoint.with_name(f".{checkpoint.name}.partial")


def remove_partial(partial: Path) -> None:
    """Delete what a write that was cut short has left over."""
    shutil.rmtree(partial, ignore_errors=True)


def complete(directory: Path) -> list[Path]:
    """The checkpoints in `directory`, by step."""
    found = {step_of(path.name): path for path in directory.glob("step-*") if (path / MANIFEST).is_file()}
    return [path for _, path in sorted((step, path) for step, path in found.items() if step is not None)]


def commit(partial: Path, final: Path, state: Mapping[str, Any]) -> None:
    """Turn `partial`, where the learner's files are, into the checkpoint `final`. Raises OSError, or
    CheckpointError for a file whose name no reader would accept.
    """
    write_json(partial / LOOP_STATE, state)
    manifest = {"format": FORMAT, "step": step_of(final.name), "files": digests(partial)}
    read_manifest(json.dumps(manifest).encode(), partial)
    write_json(partial / MANIFEST, manifest)
    shutil.rmtree(final, ignore_errors=True)  # what a removal that was cut short left over
    partial.rename(final)
    sync_directory(final.parent)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint, its manifest first: what a crash leaves over is not a checkpoint."""
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint, so that its name is free and its files can be looked at; the new path."""
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)  # of an earlier time that this step was trained
    checkpoint.rename(aside)
    return aside


def verify(checkpoint: Path) -> None:
    """Raises CheckpointError, naming the file, if a file of the checkpoint is missing, has another size or
    another digest, or if the manifest itself can't be read.
    """
    manifest = read_manifest((checkpoint / MANIFEST).read_bytes(), checkpoint / MANIFEST)
    found = digests(checkpoint)
    for name, expected in manifest.items():
        if found.get(name) != expected:
            raise CheckpointError(
                f"{checkpoint / name} differs from its manifest: expected {expected}, found {found.get(name)}"
            )


def read_manifest(content: bytes, where: object) -> dict[str, dict[str, Any]]:
    """Size and digest of each file by name. Raises CheckpointError, naming `where` the manifest came from.

    The names become paths below a checkpoint's directory, so each must be one plain path component.
    """
    try:
        manifest: dict[str, Any] = json.loads(content)
        version, files = manifest["format"], dict[str, dict[str, Any]](manifest["files"])
        listed = LOOP_STATE in files
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{where} is not a checkpoint's manifest: {error!r}") from error
    for name in files:
        if not is_plain_name(name) or name == MANIFEST:
            raise CheckpointError(f"{where} lists {name!r}, which is not a plain file name")
    if version != FORMAT:
        raise CheckpointError(f"{where} has format {version}, this version reads format {FORMAT}")
    if not listed:
        raise CheckpointError(f"{where} does not list {LOOP_STATE}")
    return files


def is_plain_name(name: str) -> bool:
    """Whether `name` is one visible path component: it cannot lead out of the directory it is joined to."""
    return len(name) <= LONGEST_NAME and PLAIN_NAME.fullmatch(name) is not None


def digests(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file but the manifest, by its path inside `directory`; links do not count."""
    files = sorted(
        path
        for path in directory.rglob("*")
        if path.is_file() and not path.is_symlink() and path != directory / MANIFEST
    )
    return {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in files
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write and wait until the disk has it."""
    with path.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Wait until the disk has the directory's own entries."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
