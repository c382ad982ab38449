"""Measured energy: the NVML energy counter of each GPU, read while a command runs and stored
beside its spool.

Each line of `power.jsonl` is the energy of one lease between two reads:

    {"lease_id": "w/1/0", "start_ns": 0, "end_ns": 30000000000, "millijoules": 12345678}
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from orchestrator.ledger.errors import LedgerError

FILE = "power.jsonl"


class MeterLostError(Exception):
    """A meter that used to work no longer responds."""


class PowerMeter(Protocol):
    """Port: reads the energy counter of each accelerator of a command, in the order of its leases."""

    def millijoules(self) -> Sequence[int]:
        """The counters now. They only increase, from an arbitrary start. Raises MeterLostError."""
        ...


class FakeMeter:
    """The fake of the port: accelerators that draw `watts` each, with one second between reads."""

    def __init__(self, watts: Sequence[int]) -> None:
        self._watts, self._reads = watts, 0

    def millijoules(self) -> Sequence[int]:
        self._reads += 1
        return [watts * 1000 * self._reads for watts in self._watts]


class NvmlMeter:
    """The total energy counters of NVIDIA GPUs (Volta and newer) since the driver was loaded."""

    def __init__(self, nvml: Any, handles: Sequence[Any]) -> None:  # noqa: ANN401 - the library has no types
        self._nvml, self._handles = nvml, handles

    @classmethod
    def of(cls, visible: str, count: int) -> Self | None:
        """A meter of the first `count` GPUs in CUDA_VISIBLE_DEVICES (`visible`), or of the first GPUs of the
        machine. None if NVML is not available or does not know all of them.
        """
        try:
            import pynvml
        except ImportError:
            return None
        names = [part.strip() for part in visible.split(",") if part.strip()]
        names = names or [str(index) for index in range(count)]
        if len(names) < count:
            return None
        try:
            pynvml.nvmlInit()
            handles = [
                pynvml.nvmlDeviceGetHandleByIndex(int(name))
                if name.isdigit()
                else pynvml.nvmlDeviceGetHandleByUUID(name)
                for name in names[:count]
            ]
            meter = cls(pynvml, handles)
            meter.millijoules()
        except (pynvml.NVMLError, MeterLostError):
            return None
        return meter

    def millijoules(self) -> Sequence[int]:
        try:
            return [self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self._handles]
        except self._nvml.NVMLError as error:
            raise MeterLostError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Drawn:
    """The energy of a lease from `start_ns` to `end_ns`."""

    lease_id: str
    start_ns: int
    end_ns: int
    millijoules: int


class PowerLog:
    """Reads a meter at each heartbeat and appends the energy since the previous one. If the meter is lost,
    the log ends but the command continues; energy that is not measured is modelled.
    """

    def __init__(self, meter: PowerMeter, leases: Sequence[str], path: Path, at_ns: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._meter: PowerMeter | None = meter
        self._leases, self._path = leases, path
        self._before, self._since_ns = meter.millijoules(), at_ns

    def beat(self, at_ns: int) -> None:
        """Append what each lease drew since the last heartbeat. Raises OSError."""
        if self._meter is None:
            return
        try:
            now = self._meter.millijoules()
        except MeterLostError as error:
            self._meter = None
            logging.getLogger(__name__).warning("power is no longer measured: %s", error)
            return
        lines = [
            json.dumps(asdict(Drawn(lease, self._since_ns, at_ns, after - before)))
            for lease, before, after in zip(self._leases, self._before, now, strict=True)
        ]
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(fd, ("\n".join(lines) + "\n").encode())
        finally:
            os.close(fd)
        self._before, self._since_ns = now, at_ns


def read_drawn(files: Iterable[Path]) -> dict[str, Drawn]:
    """The total energy of each lease: the sum of its lines. `end_ns` - `start_ns` is the time they cover.

    Raises LedgerError, which names the line.
    """
    drawn: dict[str, Drawn] = {}
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                one = Drawn(**json.loads(line))
                covered, millijoules = one.end_ns - one.start_ns, int(one.millijoules)
                if covered < 0 or millijoules < 0:
                    raise ValueError("negative")
            except (ValueError, TypeError) as error:
                raise LedgerError(
                    f"{file}:{number}", line[:80], "a line of power.jsonl", str(error)
                ) from error
            before = drawn.get(one.lease_id, Drawn(one.lease_id, 0, 0, 0))
            drawn[one.lease_id] = Drawn(
                one.lease_id, 0, before.end_ns + covered, before.millijoules + millijoules
            )
    return drawn
