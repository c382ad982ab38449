"""Writes files of a run in such a way that no reader sees an incomplete one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(path: Path, data: str | bytes) -> None:
    """Replace the content of `path` by `data`. Readers, even after a crash, see either the
    old file or the new one.

    Raises OSError, for example if the disk is full. The old file is then unchanged.
    """
    content = data.encode() if isinstance(data, str) else data
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def append_line(path: Path, fields: Mapping[str, Any]) -> None:
    """Append one JSON object as a line, in a single write. Raises OSError if it was cut short."""
    line = (json.dumps(fields, separators=(",", ":"), allow_nan=False) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        written = os.write(descriptor, line)
    finally:
        os.close(descriptor)
    if written != len(line):
        raise OSError(errno.ENOSPC, "the line was cut short", str(path))


def cut_half_line(path: Path) -> None:
    """Remove what follows the last newline of a log: a line that a crash or a full disk has cut short. The
    next line would otherwise be appended to it. Does nothing if the file does not exist.
    """
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        whole = end
        while whole and (chunk := _before(file, whole)):
            newline = chunk.rfind(b"\n")
            if newline >= 0:
                whole += newline + 1 - len(chunk)
                break
            whole -= len(chunk)
        if whole != end:
            file.truncate(whole)


def _before(file: BinaryIO, position: int, size: int = 1 << 16) -> bytes:
    start = max(position - size, 0)
    file.seek(start)
    return file.read(position - start)


def whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of a log that end in a newline; none if the file does not exist."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line
