"""A scorer process as the parent sees it: the requests in flight, their results, and their deadlines.

    LOADING --loaded--> IDLE --block--> PREPARING --prepared--> READY --score--> READY ...

Nothing that the process sends is trusted: a reply that does not match a request, or is malformed,
raises ProtocolError.
"""

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
"""Time limit for loading the scorers, and for preparing them for a block: many
times what a busy machine needs.
"""
CANCEL_SECONDS = 2.0
"""Extra time of asynchronous scorers after their timeout, in which their process cancels them."""
DUMP_SECONDS = 0.2


class State(enum.Enum):
    """The states of a scorer process; the module docstring shows the transitions."""

    LOADING = enum.auto()
    IDLE = enum.auto()
    PREPARING = enum.auto()
    READY = enum.auto()


@dataclass(frozen=True, slots=True)
class Unit:
    """Rollouts that were sent together, as row numbers of the block, and the deadline of their scores."""

    rows: tuple[int, ...]
    deadline: float


@dataclass(frozen=True, slots=True)
class LaneSettings:
    """Settings that all lanes of a grader share."""

    config: RewardConfig
    scorers: Mapping[str, str]
    output: Path | None


class Lane:
    """One scorer process. The constructor raises OSError if the process cannot be started."""

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
        """Whether its only rollout is a suspect, which must not share the process with other rollouts."""
        self._votes: dict[int, tuple[str, ...]] = {}
        self._next_unit = 0
        self._busy_before = 0.0
        self._deadline = time.monotonic() + PREPARE_SECONDS
        orders = {
            "scorers": dict(settings.scorers),
            "answer_formats": list(config.answer_formats),
            "timeout_seconds": config.timeout_seconds,
        }
        with suppress(OSError):  # the process has already died, which `receive` reports
            self._process.channel.send({"load": orders}, PREPARE_SECONDS)

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def in_flight(self) -> int:
        """Number of rollouts that it is scoring."""
        return sum(len(unit.rows) for unit in self.units.values())

    @property
    def deadline(self) -> float:
        """Time on the monotonic clock at which the process is stopped if it has not replied."""
        if self.state in (State.LOADING, State.PREPARING):
            return self._deadline
        return min((unit.deadline for unit in self.units.values()), default=math.inf)

    def fileno(self) -> int:
        return self._process.channel.fileno()

    def begin(self, block: Mapping[str, Any]) -> None:
        """Send the prompts of a block. Raises OSError or TimeoutError if the process is lost."""
        self.state, self._deadline = State.PREPARING, time.monotonic() + PREPARE_SECONDS
        self._process.channel.send({"block": block}, PREPARE_SECONDS)

    def submit(self, rows: Sequence[int], rollouts: Sequence[Any]) -> None:
        """Request the scores of some rollouts of the block. Raises OSError or TimeoutError if the process is
        lost; the rollouts count as in flight even then.
        """
        grace = CANCEL_SECONDS if self.asynchronous else 0.0
        deadline = time.monotonic() + self._timeout_seconds + grace
        self._next_unit += 1
        self.units[self._next_unit] = Unit(tuple(rows), deadline)
        message = {"score": self._next_unit, "rollouts": rollouts}
        self._process.channel.send(message, self._timeout_seconds)

    def vote(self, prompt: int, answers: Sequence[str]) -> Sequence[str]:
        """Make equivalent answers equal, see `checkers.votes`. Waits for at most the timeout. Raises OSError,
        EOFError, TimeoutError or ProtocolError if the process is lost.
        """
        self._next_unit += 1
        channel = self._process.channel
        channel.send({"vote": self._next_unit, "prompt": prompt, "answers": answers}, self._timeout_seconds)
        answer = _dictionary(channel.receive(self._timeout_seconds))
        found = answer.get("answers")
        if answer.get("voted") != self._next_unit or not _is_texts(found) or len(found) != len(answers):
            raise ProtocolError("sent an invalid reply to a vote")
        return [printable(each) for each in found]

    def receive(self) -> list[tuple[int, Outcome]]:
        """Process the replies that have arrived and update the state. Returns outcomes by row.

        Raises ConfigError if a scorer cannot be loaded; OSError, EOFError or
        ProtocolError if the process is lost.
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
        """CPU seconds used since the block was prepared; time spent waiting does not count."""
        return self._process.busy_seconds() - self._busy_before

    def dump(self) -> None:
        """Make the process write the stacks of its threads to its log. This
        works even if code holds the GIL.
        """
        if self._process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGUSR1)
            time.sleep(DUMP_SECONDS)

    def stop(self) -> str:
        """Stop the process and all of its children. Returns how it ended."""
        return self._process.stop()

    def _loaded(self, answer: Mapping[str, Any]) -> None:
        if "error" in answer:
            error = answer["error"]
            if not _is_texts(error) or len(error) != 4:
                raise ProtocolError("sent a malformed error")
            raise ConfigError(*(printable(part) for part in error))
        loaded = _dictionary(answer.get("loaded"))
        self.asynchronous = loaded.get("asynchronous") is True
        self.batched = loaded.get("batched") is True
        self.state = State.IDLE

    def _scored(self, answer: Mapping[str, Any]) -> list[tuple[int, Outcome]]:
        number, outcomes = answer.get("scored"), answer.get("outcomes")
        unit = self.units.get(number) if isinstance(number, int) else None
        if unit is None or not isinstance(outcomes, list):
            raise ProtocolError("sent a reply that matches no request")
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
                raise ProtocolError("sent a malformed outcome")
        if status not in list(ScoreStatus):
            raise ProtocolError(f"sent the unknown status {status}")
        if len(numbers) != (self._components if status == ScoreStatus.OK else 0):
            raise ProtocolError(f"sent {len(numbers)} components")
        if not all(
            type(number) in (int, float) and abs(cast("float", number)) < math.inf for number in numbers
        ):
            raise ProtocolError("sent components that are not finite numbers")
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
        raise ProtocolError("sent a message that is not an object")
    return cast("dict[str, Any]", value)


def _is_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(each, str) for each in cast("list[object]", value))
