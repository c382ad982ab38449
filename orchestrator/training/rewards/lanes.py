"""Scores a block of rollouts in child processes, which may hang, die or send garbage.

In each process, plain scorers work on one rollout at a time, asynchronous and batched ones on
`reward.concurrency`. If the scorers spend their time waiting (for a server or a subprocess), more processes
are started, until `reward.concurrency` rollouts are scored at once. CPU-bound scorers use a single process.

A process that takes too long or dies is stopped together with all of its children. If it was working on one
rollout, that rollout failed. If it was working on several, each of them is scored again by itself, which
identifies the rollout that caused the failure.
"""

from __future__ import annotations

import logging
import select
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import WorkerLostError
from orchestrator.sandbox.channel import ProtocolError
from orchestrator.training.records import ScoreStatus
from orchestrator.training.rewards.completion import Completion
from orchestrator.training.rewards.config import RewardConfig
from orchestrator.training.rewards.lane import PREPARE_SECONDS, Lane, LaneSettings, State
from orchestrator.training.rewards.scoring import Outcome

FEWEST_TOLERATED = 4
"""Every block tolerates at least this many lost processes, however small it is."""
GROW_AFTER_SECONDS = 0.3
"""How long scorers must have waited before more processes are started for them."""
WAITING_SHARE = 0.5
"""Scorers that use less than this share of a CPU count as waiting."""
_TICK_SECONDS = 0.1
_WHO = "the scorers' process"

log = logging.getLogger(__name__)

LOST = (EOFError, OSError, ProtocolError)  # TimeoutError is an OSError


class ScorerLanes:
    """The scorer processes of a grader, which are reused from block to block. Not thread-safe."""

    def __init__(self, config: RewardConfig, scorers: Mapping[str, str], output: Path | None = None) -> None:
        self._config = config
        self._settings = LaneSettings(config, scorers, output)
        self._lanes = [Lane(self._settings)]

    @property
    def pids(self) -> list[int]:
        return [lane.pid for lane in self._lanes if lane.pid is not None]

    def load(self) -> None:
        """Wait until the scorers are loaded. Raises ConfigError if one cannot be loaded."""
        while not self._lanes or self._lanes[0].state is State.LOADING:
            _Block(self._config, self._settings, self._lanes, [], []).advance()

    def score(self, completions: Sequence[Completion]) -> list[Outcome | None]:
        """Score completions. Returns their outcomes in order; None for those that were not tried because too
        many processes were lost before.

        Raises ConfigError if a scorer cannot be loaded, and WorkerLostError if no process becomes ready.
        """
        if not completions:
            return []
        prompts, rollouts = _messages(completions)
        block = _Block(self._config, self._settings, self._lanes, rollouts, prompts)
        block.begin(completions[0].max_new_tokens)
        while not block.done:
            block.advance()
        return block.outcomes

    def votes(self, prompt: Completion, answers: Sequence[str]) -> Sequence[str]:
        """Make equivalent answers to one prompt equal. If the process fails, the
        answers are returned unchanged.
        """
        prompts, _ = _messages([prompt])
        block = _Block(self._config, self._settings, self._lanes, [], prompts)
        block.begin(prompt.max_new_tokens)
        while not block.ready:
            block.advance()
        lane = next(lane for lane in self._lanes if lane.state is State.READY)
        try:
            return lane.vote(0, answers)
        except LOST as error:
            self._lanes.remove(lane)
            reason = error or type(error).__name__
            log.warning("comparing answers as texts, because a vote failed: %s (%s)", reason, lane.stop())
            return answers

    def close(self) -> None:
        """Stop all processes immediately."""
        while self._lanes:
            self._lanes.pop().stop()


class _Block:
    """The scoring of one block: starts lanes, distributes the rollouts over them, and stops them."""

    def __init__(
        self,
        config: RewardConfig,
        settings: LaneSettings,
        lanes: list[Lane],
        rollouts: Sequence[Any],
        prompts: Sequence[Any],
    ) -> None:
        self._config, self._settings, self._lanes = config, settings, lanes
        self._rollouts = rollouts
        self._message: dict[str, Any] = {"prompts": prompts, "max_new_tokens": 0}
        self._pending = deque(range(len(rollouts)))
        self._suspects: deque[int] = deque()
        self.outcomes: list[Outcome | None] = [None] * len(rollouts)
        self._lost, self._unready = 0, 0
        self._tolerated = max(FEWEST_TOLERATED, int(config.failure_budget * len(rollouts)))
        self._grows_from, self._busy_before = time.monotonic(), 0.0

    @property
    def done(self) -> bool:
        in_flight = any(lane.units for lane in self._lanes)
        waiting = bool(self._pending or self._suspects) and self._lost <= self._tolerated
        return not in_flight and not waiting

    @property
    def ready(self) -> bool:
        return any(lane.state is State.READY for lane in self._lanes)

    def begin(self, max_new_tokens: int) -> None:
        """Send the prompts to the lanes that are still running after the previous block."""
        self._message["max_new_tokens"] = max_new_tokens
        for lane in list(self._lanes):
            if lane.state is not State.LOADING:
                self._try(lane, lambda lane=lane: lane.begin(self._message))

    def advance(self) -> None:
        """Distribute work, wait for replies or the next deadline, and handle them."""
        if not self._lanes:
            self._start()
        self._hand_out()
        self._grow()
        now = time.monotonic()
        nearest = min((lane.deadline for lane in self._lanes), default=now)
        heard = _readable(self._lanes, min(max(nearest - now, 0.0), _TICK_SECONDS))
        for lane in heard:
            self._try(lane, lambda lane=lane: self._hear(lane))
        now = time.monotonic()
        for lane in [lane for lane in self._lanes if lane.deadline <= now]:
            self._late(lane)

    def _hear(self, lane: Lane) -> None:
        for row, outcome in lane.receive():
            self.outcomes[row] = outcome
        lane.alone = lane.alone and bool(lane.units)
        if lane.state is State.IDLE and self._message["prompts"]:
            lane.begin(self._message)
        elif lane.state is State.READY:
            self._unready = 0

    def _hand_out(self) -> None:
        if self._lost > self._tolerated:
            return
        for lane in list(self._lanes):
            while lane.state is State.READY and not lane.alone and lane in self._lanes:
                rows = self._next_rows(lane)
                if not rows:
                    break
                self._try(lane, lambda lane=lane, rows=rows: self._submit(lane, rows))

    def _submit(self, lane: Lane, rows: Sequence[int]) -> None:
        lane.submit(rows, [self._rollouts[row] for row in rows])

    def _next_rows(self, lane: Lane) -> list[int]:
        """Choose the next rows for a lane: one suspect by itself, or pending rows."""
        if self._suspects and not lane.units:
            lane.alone = True
            return [self._suspects.popleft()]
        free = self._config.concurrency - sum(each.in_flight for each in self._lanes)
        if free <= 0 or not self._pending or (lane.units and not lane.asynchronous):
            return []
        count = min(free, len(self._pending)) if lane.batched else 1
        return [self._pending.popleft() for _ in range(count)]

    def _grow(self) -> None:
        """Start more processes if rollouts are pending and the busy processes are waiting for something."""
        working = [lane for lane in self._lanes if lane.units]
        free = self._config.concurrency - sum(lane.in_flight for lane in self._lanes)
        if len(working) < len(self._lanes) or not self._pending or free <= 0:
            self._grows_from = time.monotonic()
            self._busy_before = sum(lane.busy_seconds() for lane in working)
            return
        waited = time.monotonic() - self._grows_from
        if waited < GROW_AFTER_SECONDS:
            return
        busy = sum(lane.busy_seconds() for lane in working) - self._busy_before
        if busy < WAITING_SHARE * waited * len(working):
            for _ in range(min(free, len(self._pending))):
                self._lanes.append(Lane(self._settings))
        self._grows_from = time.monotonic()
        self._busy_before += busy

    def _start(self) -> None:
        try:
            self._lanes.append(Lane(self._settings))
        except OSError as error:
            raise WorkerLostError(_WHO, f"could not be started: {error}") from error

    def _try(self, lane: Lane, action: Any) -> None:  # noqa: ANN401 - a function without arguments
        try:
            action()
        except TimeoutError:
            self._late(lane)
        except ProtocolError as error:
            self._gone(lane, ScoreStatus.CRASHED, f"{_WHO} {error}")
        except (EOFError, OSError):
            self._gone(lane, ScoreStatus.CRASHED, "")

    def _late(self, lane: Lane) -> None:
        if lane.units:
            lane.dump()
            reason = f"no score within {self._config.timeout_seconds:g} s"
            self._gone(lane, ScoreStatus.TIMEOUT, reason)
        else:
            self._gone(lane, ScoreStatus.TIMEOUT, f"silent for {PREPARE_SECONDS:g} s")

    def _gone(self, lane: Lane, status: ScoreStatus, reason: str) -> None:
        """Stop a lane that failed, and record or reschedule its rollouts."""
        self._lanes.remove(lane)
        how = lane.stop()
        rows = [row for unit in lane.units.values() for row in unit.rows]
        if not rows:
            self._was_not_ready(lane, reason or how)
            return
        reason = reason or f"{_WHO} {how}"
        log.warning("a scorer process was stopped: %s", reason)
        self._lost += 1
        if len(rows) == 1:
            self.outcomes[rows[0]] = Outcome(status, reason=reason)
        else:
            self._suspects.extend(rows)

    def _was_not_ready(self, lane: Lane, how: str) -> None:
        """A process that dies between blocks is replaced. It is an error if no process becomes ready."""
        when = "while it started" if lane.state is State.LOADING else "while it prepared its scorers"
        log.warning("%s was lost: %s %s", _WHO, how, when)
        self._unready += 1
        if self._lanes:
            return  # the other processes continue
        if lane.state is State.LOADING or self._unready > 1:
            again = "" if lane.state is State.LOADING else ", twice"
            raise WorkerLostError(_WHO, f"{how} {when}{again}")


def _readable(lanes: Sequence[Lane], seconds: float) -> list[Lane]:
    poll = select.poll()
    by_fd = {lane.fileno(): lane for lane in lanes}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    return [by_fd[fd] for fd, _ in poll.poll(seconds * 1000)]


def _messages(completions: Sequence[Completion]) -> tuple[list[Any], list[Any]]:
    """Build the messages for the child: each prompt once, and the rollouts with the index of their prompt."""
    indices: dict[str, int] = {}
    prompts: list[Any] = []
    rollouts: list[Any] = []
    for one in completions:
        prompt = one.prompt
        if prompt.prompt_id not in indices:
            indices[prompt.prompt_id] = len(prompts)
            prompts.append((prompt.prompt_id, prompt.text, prompt.reference, prompt.columns))
        rollouts.append((indices[prompt.prompt_id], one.text, one.length, int(one.finish), one.prefill))
    return prompts, rollouts
