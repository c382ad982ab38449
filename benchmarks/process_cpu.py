"""CPU seconds of whole process trees: the cost of a system on a machine that is also used by others."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self


class CpuMeter:
    """Measures the CPU seconds of a process and all its descendants over time, from /proc (Linux), while its
    `with` is open. Processes that have ended still count, up to their last sample.
    """

    def __init__(self, root: int, every_seconds: float = 0.25) -> None:
        self._root, self._every_seconds = root, every_seconds
        self._seconds: dict[int, float] = {}
        self._names: dict[int, str] = {}
        self._samples: list[tuple[int, dict[int, float]]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def between(self, start_ns: int, end_ns: int) -> float:
        """CPU seconds from one wall time (`time.time_ns()`) to another."""
        return sum(self.by_process(start_ns, end_ns).values())

    def by_process(self, start_ns: int, end_ns: int) -> dict[str, float]:
        """The same by the name of the process; processes with the same name are added up."""
        found: dict[str, float] = {}
        for pid, name in self._names.items():
            line = [(at_ns, seconds.get(pid, 0.0)) for at_ns, seconds in self._samples]
            used = interpolated(line, end_ns) - interpolated(line, start_ns)
            found[name] = found.get(name, 0.0) + used
        return found

    def _watch(self) -> None:
        while not self._stop.wait(self._every_seconds):
            self._look()

    def _look(self) -> None:
        alive = tree_cpu_seconds(self._root)
        self._seconds |= alive
        self._samples.append((time.time_ns(), dict(self._seconds)))
        self._names |= {pid: process_name(pid) or self._names.get(pid, "?") for pid in alive}


def tree_cpu_seconds(root: int) -> dict[int, float]:
    """CPU seconds of process `root` and of its living descendants, by process id."""
    tick = os.sysconf("SC_CLK_TCK")
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
        except OSError:  # it has just ended
            continue
        fields = stat[stat.rindex(")") + 2 :].split()  # a command's name, in parentheses, may hold any text
        parents[int(entry.name)] = int(fields[1])
        seconds[int(entry.name)] = (int(fields[11]) + int(fields[12])) / tick
    found: set[int] = set()
    newest = {root}
    while newest:
        found |= newest
        newest = {pid for pid, parent in parents.items() if parent in newest} - found
    return {pid: seconds[pid] for pid in found if pid in seconds}


def process_name(pid: int) -> str:
    """The program of a process: `ray::LearnerActor`, `vs_trl.py`, `raylet`, ...; empty if it has ended."""
    try:
        words = (Path("/proc") / str(pid) / "cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return ""
    if words[0].startswith("ray::"):
        return words[0].split(".")[0].strip()
    program = Path(words[0]).name
    arguments = [word for word in words[1:] if word and not word.startswith("-")]
    return Path(arguments[0]).name if program.startswith("python") and arguments else program


def interpolated(samples: Sequence[tuple[int, float]], at_ns: int) -> float:
    """The value at `at_ns`, interpolated linearly between (time, value) samples in order; outside of them,
    the value of the first or last one.

    >>> interpolated([(0, 1.0), (10, 2.0)], 5)
    1.5
    """
    before = next((sample for sample in reversed(samples) if sample[0] <= at_ns), samples[0])
    after = next((sample for sample in samples if sample[0] >= at_ns), samples[-1])
    width = after[0] - before[0]
    return before[1] + ((after[1] - before[1]) * (at_ns - before[0]) / width if width > 0 else 0.0)
