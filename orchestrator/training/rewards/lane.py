"""One process with scorers, seen from the parent: what it was asked, what it answered, and until when it may.

    LOADING --loaded--> IDLE --block--> PREPARING --prepared--> READY --score--> READY ...

Nothing that the process sends is trusted: an answer that was not asked for, or has another form than it
should, raises ProtocolError."""

from __future__ import annotations

import enum
import math
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, cast

from orchestrator.errors import ConfigError
from orchestrator.sandbox.channel import ProtocolError
from orchestrator.sandbox.environment import without_secrets
from orchestrator.sandbox.process import GuardedProcess
from orchestrator.training.records import ScoreStatus
from orchestrator.training.rewards.config import RewardConfig
from orchestrator.training.rewards.scoring import REASON_LENGTH, TRACEBACK_LENGTH, Outcome, printable

PREPARE_SECONDS = 120.0
"""How long a process may take to load its scorers, and to prepare them for a block. Many times what a
loaded machine takes.
"""
CANCEL_SECONDS = 2.0
"""How much longer than the timeout asynchronous scorers may take: they are cancelled first,
in their process.
"""
DUMP_SECONDS = 0.2


class State(enum.Enum):
    """See the module."""

    LOADING = enum.auto()
    IDLE = enum.auto()
    PREPARING = enum.auto()
    READY = enum.auto()


@dataclass(frozen=True, slots=True)
class Unit:
    """Rollouts that were sent together, by their rows in the block, and when they have to be answered."""

    rows: tuple[int, ...]
    deadline: float


@dataclass(frozen=True, slots=True)
class LaneSettings:
    """What every lane of a grader has in common."""

    config: RewardConfig
    scorers: Mapping[str, str]
    output: Path | None


class Lane:
    """Raises OSError if its process cannot be started."""

    def __init__(self, settings: LaneSettings) -> None:
        config = settings.config
        self._components = len(settings.scorers)
        self._timeout_seconds = config.timeout_seconds
        self._process = GuardedProcess(
            [sys.executable, "-m", "orchestrator.training.rewards.child"],
            _environment(config),
            _limits(config),
            settings.output,
        )
        self.state = State.LOADING
        self.asynchronous, self.batched = False, False
        self.units: dict[int, Unit] = {}
        self.alone = False
        """Whether its only rollout is under suspicion and must not be joined by others."""
        self._votes: dict[int, tuple[str, ...]] = {}
        self._next_unit = 0
        self._busy_before = 0.0
        self._deadline = time.monotonic() + PREPARE_SECONDS
        orders = {
            "scorers": dict(settings.scorers),
            "answer_formats": list(config.answer_formats),
            "timeout_seconds": config.timeout_seconds,
        }
        with suppress(OSError):  # it has died already; `receive` notices
            self._process.channel.send({"load": orders}, PREPARE_SECONDS)

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def in_flight(self) -> int:
        """Rollouts that it is working on."""
        return sum(len(unit.rows) for unit in self.units.values())

    @property
    def deadline(self) -> float:
        """When it has to be stopped unless it answers before, on the monotonic clock."""
        if self.state in (State.LOADING, State.PREPARING):
            return self._deadline
        return min((unit.deadline for unit in self.units.values()), default=math.inf)

    def fileno(self) -> int:
        return self._process.channel.fileno()

    def begin(self, block: Mapping[str, Any]) -> None:
        """Send the prompts of a block. Raises OSError or TimeoutError if it is lost."""
        self.state, self._deadline = State.PREPARING, time.monotonic() + PREPARE_SECONDS
        self._process.channel.send({"block": block}, PREPARE_SECONDS)

    def submit(self, rows: Sequence[int], rollouts: Sequence[Any]) -> None:
        """Have some rollouts of the block scored. Raises OSError or TimeoutError if it is lost; they are in
        flight even then."""
        grace = CANCEL_SECONDS if self.asynchronous else 0.0
        deadline = time.monotonic() + self._timeout_seconds + grace
        self._next_unit += 1
        self.units[self._next_unit] = Unit(tuple(rows), deadline)
        message = {"score": self._next_unit, "rollouts": rollouts}
        self._process.channel.send(message, self._timeout_seconds)

    def vote(self, prompt: int, answers: Sequence[str]) -> Sequence[str]:
        """The answers with equivalent ones made equal; see `checkers.votes`. Waits for at most the timeout.
        Raises OSError, EOFError, TimeoutError or ProtocolError if the lane is lost."""
        self._next_unit += 1
        channel = self._process.channel
        channel.send({"vote": self._next_unit, "prompt": prompt, "answers": answers}, self._timeout_seconds)
        answer = _dictionary(channel.receive(self._timeout_seconds))
        found = answer.get("answers")
        if answer.get("voted") != self._next_unit or not _is_texts(found) or len(found) != len(answers):
            raise ProtocolError("answered a vote with something else")
        return [printable(each) for each in found]

    def receive(self) -> list[tuple[int, Outcome]]:
        """What has arrived since the last call: outcomes by row. Changes the state.

        Raises ConfigError if a scorer cannot be loaded; OSError, EOFError or ProtocolError if
        the lane is lost.
        """
        found: list[tuple[int, Outcome]] = []
        for message in self._process.channel.received():
            answer = _dictionary(message)
            if self.state is State.LOADING:
                self._loaded(answer)
            elif self.state is State.PREPARING and answer == {"prepared": True}:
                self.state = State.READY
                self._busy_before = self._process.busy_seconds()
            else:
                found += self._scored(answer)
        return found

    def busy_seconds(self) -> float:
        """How long it has computed since the block was prepared, rather than waited for something."""
        return self._process.busy_seconds() - self._busy_before

    def dump(self) -> None:
        """Have the stacks of its threads written to its log; even code that holds the GIL
        cannot prevent it.
        """
        if self._process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGUSR1)
            time.sleep(DUMP_SECONDS)

    def stop(self) -> str:
        """End it with all that it started; how it ended."""
        return self._process.stop()

    def _loaded(self, answer: Mapping[str, Any]) -> None:
        if "error" in answer:
            error = answer["error"]
            if not _is_texts(error) or len(error) != 4:
                raise ProtocolError("sent an error of another form")
            raise ConfigError(*(printable(part) for part in error))
        loaded = _dictionary(answer.get("loaded"))
        self.asynchronous = loaded.get("asynchronous") is True
        self.batched = loaded.get("batched") is True
        self.state = State.IDLE

    def _scored(self, answer: Mapping[str, Any]) -> list[tuple[int, Outcome]]:
        number, outcomes = answer.get("scored"), answer.get("outcomes")
        unit = self.units.get(number) if isinstance(number, int) else None
        if unit is None or not isinstance(outcomes, list):
            raise ProtocolError("sent an answer to a question that was not asked")
        rows = cast("list[object]", outcomes)
        if len(rows) != len(unit.rows):
            raise ProtocolError(f"sent {len(rows)} outcomes for {len(unit.rows)} rollouts")
        found = [(row, self._outcome(fields)) for row, fields in zip(unit.rows, rows, strict=True)]
        del self.units[cast("int", number)]
        return found

    def _outcome(self, fields: object) -> Outcome:
        match fields:
            case [int(status), list(components), str(reason), str(trace)]:
                numbers = cast("list[object]", components)
            case _:
                raise ProtocolError("sent an outcome of another form")
        if status not in list(ScoreStatus):
            raise ProtocolError(f"sent the unknown status {status}")
        if len(numbers) != (self._components if status == ScoreStatus.OK else 0):
            raise ProtocolError(f"sent {len(numbers)} components")
        if not all(
            type(number) in (int, float) and abs(cast("float", number)) < math.inf for number in numbers
        ):
            raise ProtocolError("sent components that are not numbers")
        return Outcome(
            ScoreStatus(status),
            tuple(float(cast("float", number)) for number in numbers),
            printable(reason)[:REASON_LENGTH],
            printable(trace)[-TRACEBACK_LENGTH:],
        )


def _environment(config: RewardConfig) -> dict[str, str]:
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    kept = without_secrets(os.environ, config.environment)
    return threads | kept | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def _limits(config: RewardConfig) -> dict[str, int]:
    limits = {"RLIMIT_CORE": 0}
    if config.memory_bytes:
        limits["RLIMIT_AS"] = config.memory_bytes
    if config.file_bytes:
        limits["RLIMIT_FSIZE"] = config.file_bytes
    return limits


def _dictionary(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ProtocolError("sent something else than an object")
    return cast("dict[str, Any]", value)


def _is_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(each, str) for each in cast("list[object]", value))
