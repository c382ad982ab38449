"""The format of a checkpoint on disk: a directory `step-000040` whose manifest is written last.

    step-000040/
        rank-0-of-2...          the learner ranks' shards
        loop.json               the loop's own state
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

from orchestrator.errors import CheckpointError, CheckpointFormatError

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
    """Inverse of `name_of`; None if `name` is not the name of a checkpoint."""
    match = NAME.fullmatch(name)
    return int(match.group(1)) if match else None


def partial_of(checkpoint: Path) -> Path:
    """The directory in which a checkpoint is written before it is renamed into place."""
    return checkpoint.with_name(f".{checkpoint.name}.partial")


def remove_partial(partial: Path) -> None:
    """Delete the files of an interrupted write."""
    shutil.rmtree(partial, ignore_errors=True)


def complete(directory: Path) -> list[Path]:
    """The complete checkpoints in `directory`, by step."""
    found = {step_of(path.name): path for path in directory.glob("step-*") if (path / MANIFEST).is_file()}
    return [path for _, path in sorted((step, path) for step, path in found.items() if step is not None)]


def commit(partial: Path, final: Path, state: Mapping[str, Any]) -> None:
    """Turn `partial`, which contains the learner's files, into the checkpoint `final`. Raises OSError, or
    CheckpointError for a file whose name readers would reject.
    """
    write_json(partial / LOOP_STATE, state)
    manifest = {"format": FORMAT, "step": step_of(final.name), "files": digests(partial)}
    read_manifest(json.dumps(manifest).encode(), partial)
    write_json(partial / MANIFEST, manifest)
    shutil.rmtree(final, ignore_errors=True)  # left over from an interrupted removal
    partial.rename(final)
    sync_directory(final.parent)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint, its manifest first, so that a crash does not leave a damaged checkpoint."""
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint, so that its name is free and its files can be
    inspected. Returns the new path.
    """
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)  # from an earlier time that this step was trained
    checkpoint.rename(aside)
    return aside


def verify(checkpoint: Path) -> None:
    """Raise CheckpointError, naming the file, if a file of the checkpoint is missing or has another size or
    digest, or if the manifest itself cannot be read.
    """
    manifest = read_manifest((checkpoint / MANIFEST).read_bytes(), checkpoint / MANIFEST)
    found = digests(checkpoint)
    for name, expected in manifest.items():
        if found.get(name) != expected:
            raise CheckpointError(
                f"{checkpoint / name} differs from its manifest: expected {expected}, found {found.get(name)}"
            )


def read_manifest(content: bytes, where: object) -> dict[str, dict[str, Any]]:
    """Size and digest of each file by name. Raises CheckpointError that names `where` the manifest is, and
    CheckpointFormatError for the format of another version.

    The names become paths below a checkpoint's directory, so each must be one plain path component.
    """
    try:
        manifest: dict[str, Any] = json.loads(content)
        version = manifest["format"]
        files = dict[str, dict[str, Any]](manifest["files"] if version == FORMAT else {})
        listed = LOOP_STATE in files
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{where} is not a checkpoint's manifest: {error!r}") from error
    if version != FORMAT:
        raise CheckpointFormatError(
            f"{where} has format {version!r}, and this version of orchestrator reads format {FORMAT}."
            " Use the version that wrote it (the run's manifest.json names its commit)."
        )
    for name in files:
        if not is_plain_name(name) or name == MANIFEST:
            raise CheckpointError(f"{where} lists {name!r}, which is not a plain file name")
    if not listed:
        raise CheckpointError(f"{where} does not list {LOOP_STATE}")
    return files


def is_plain_name(name: str) -> bool:
    """Whether `name` is a single visible path component, which cannot lead out of its directory."""
    return len(name) <= LONGEST_NAME and PLAIN_NAME.fullmatch(name) is not None


def digests(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file but the manifest, by path inside `directory`. Links are ignored."""
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
    """Write a file and sync it to disk."""
    with path.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Sync the directory's own entries to disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
