"""Looks at processes that are not children of this one."""

from __future__ import annotations

from pathlib import Path


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the latter: it ended between the open and the read
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def working_in(folder: Path) -> list[int]:
    """The living processes whose working directory is `folder`."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                here = (entry / "cwd").readlink() == folder
            except OSError:  # it has ended, or is another user's
                continue
            if here and alive(int(entry.name)):
                found.append(int(entry.name))
    return found
