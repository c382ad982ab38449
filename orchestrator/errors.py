"""Every error this project raises on purpose, under one picklable base.

An error is classified once, where it crosses a boundary (a file that was read, an actor that was called, a
grader that ran). `exit_code` is what the command line ends with: 1 the run failed, 2 bad usage or config
(nothing was started), 3 stopped by budget, 4 drained or preempted (resumable).

Exceptions cross process boundaries inside Ray, so each keeps all of its state in `args`:
`pickle.loads(pickle.dumps(e))` gives an equal error.
"""

from __future__ import annotations

import re

from orchestrator.masking import mask, mask_value

_ANSI_SEQUENCE = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[@-Z\\-_])")


def without_colours(text: str) -> str:
    """`text` without the terminal sequences that Ray and others put into the messages of their errors."""
    return _ANSI_SEQUENCE.sub("", text)


class OrchestratorError(Exception):
    """Base of all errors raised on purpose; `str(error)` is a sentence for a person."""

    exit_code: int = 1


class InputError(OrchestratorError):
    """The user's input cannot be used: a config, a command line, a file. Nothing was started."""

    exit_code = 2


class ConfigError(InputError):
    """A key of a config or of a command line has a value that is not allowed. Passwords and webhooks in the
    value are masked.

    >>> print(ConfigError("max_staleness", "-1", "0 or more", "0 is synchronous training"))
    max_staleness: got -1, allowed: 0 or more (0 is synchronous training)
    """

    def __init__(self, key: str, value: str, allowed: str, hint: str = "") -> None:
        value, hint = mask_value(key, value), mask(hint)
        super().__init__(key, value, allowed, hint)
        self.key, self.value, self.allowed, self.hint = key, value, allowed, hint

    def __str__(self) -> str:
        tail = f" ({self.hint})" if self.hint else ""
        return f"{self.key}: got {self.value}, allowed: {self.allowed}{tail}"


class DatasetError(ConfigError):
    """A task's data can't be read; `key` is `path` or `path:line`."""


class PromptTooLongError(ConfigError):
    """A prompt leaves no room for an answer inside the model's context."""


class NotFoundError(ConfigError):
    """Something named by the user does not exist; `allowed` lists what does.

    >>> print(NotFoundError("run", "r3", "r1, r2", "runs are looked for in /data"))
    No run matches r3. There are: r1, r2 (runs are looked for in /data)
    """

    def __str__(self) -> str:
        tail = f" ({self.hint})" if self.hint else ""
        return f"No {self.key} matches {self.value or 'an empty name'}. There are: {self.allowed}{tail}"


class RunNotFoundError(NotFoundError):
    """No run of that id, or id prefix, under the output directory."""


class StateError(OrchestratorError):
    """The command is valid but not in the present state: the run is still running, the ledger month is
    closed. The message is a complete sentence that says what to do instead. Nothing was changed.

    >>> print(StateError("Run r1 is still running. Stop it first: orchestrator stop r1."))
    Run r1 is still running. Stop it first: orchestrator stop r1.
    """

    exit_code = 2


class WorkerLostError(OrchestratorError):
    """An actor died or stopped answering. `worker` names it; the work it held goes to others."""

    def __init__(self, worker: str, reason: str) -> None:
        super().__init__(worker, reason)
        self.worker, self.reason = worker, reason

    def __str__(self) -> str:
        return f"{self.worker} was lost: {self.reason}"


class DataLostError(OrchestratorError):
    """The data that an actor was to work on (rollouts, weights) is gone with the process or node that held
    it. `worker` looked for it and is well: nobody is restarted, the data is made again.
    """

    def __init__(self, worker: str, reason: str) -> None:
        super().__init__(worker, reason)
        self.worker, self.reason = worker, reason

    def __str__(self) -> str:
        return f"{self.worker} found its data lost: {self.reason}"


class FailureBudgetExceededError(OrchestratorError):
    """A tolerated failure happened more often than its budget allows."""

    def __init__(self, what: str, count: int, budget: int, last: str) -> None:
        super().__init__(what, count, budget, last)
        self.what, self.count, self.budget, self.last = what, count, budget, last

    def __str__(self) -> str:
        return f"{self.what}: {self.count} failures, the budget is {self.budget}; the last one: {self.last}"


class NonFiniteError(OrchestratorError):
    """A loss or a gradient norm is NaN or infinite. Never a normal finish."""

    def __init__(self, what: str, value: float, step: int) -> None:
        super().__init__(what, value, step)
        self.what, self.value, self.step = what, value, step

    def __str__(self) -> str:
        return f"{self.what} is {self.value} at step {self.step}: the update was not applied"


class StorageError(OrchestratorError):
    """A disk refused what an actor wanted to write: it is full, read-only or failing."""

    def __init__(self, actor: str, reason: str) -> None:
        super().__init__(actor, reason)
        self.actor, self.reason = actor, reason

    def __str__(self) -> str:
        return f"{self.actor} could not write: {self.reason}"


class CheckpointError(OrchestratorError):
    """A checkpoint can't be written or its digests don't match; the last good one is untouched."""


class CheckpointConflictError(CheckpointError):
    """Another process writes checkpoints of the same run to the same store: this one must not go on."""


class BudgetStopError(OrchestratorError):
    """The run reached its hard budget, made a checkpoint and stopped."""

    exit_code = 3


class DrainedError(OrchestratorError):
    """The run was asked to stop (Ctrl-C, SIGTERM, preemption), made a checkpoint and can be resumed."""

    exit_code = 4
