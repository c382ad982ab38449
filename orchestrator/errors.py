"""All errors that this project raises deliberately, with one picklable base class.

An error is classified once, at the boundary that it crosses (reading a file, calling an actor, running a
scorer). `exit_code` is the exit code of the command: 1 the run failed, 2 invalid usage or config (nothing was
started), 3 stopped by a budget, 4 stopped on request or preempted (can be resumed).

Exceptions cross process boundaries inside Ray, so each keeps all of its state in `args`:
`pickle.loads(pickle.dumps(e))` gives an equal error.
"""

from __future__ import annotations

import re

from orchestrator.masking import mask, mask_value

_ANSI_SEQUENCE = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[@-Z\\-_])")


def without_colours(text: str) -> str:
    """Remove the terminal sequences that Ray and other libraries put into their error messages."""
    return _ANSI_SEQUENCE.sub("", text)


class OrchestratorError(Exception):
    """Base of all errors raised deliberately. `str(error)` is a sentence for users."""

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
    """A task's data cannot be read. `key` is `path` or `path:line`."""


class PromptTooLongError(ConfigError):
    """A prompt leaves no room for an answer inside the model's context."""


class NotFoundError(ConfigError):
    """Something that the user named does not exist. `allowed` lists what does.

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
    """An actor died or stopped responding. `worker` is its name. Its work is given to other actors.

    `node_died` is true if its whole node is known to have been lost.
    """

    def __init__(self, worker: str, reason: str, node_died: bool = False) -> None:
        super().__init__(worker, reason, node_died)
        self.worker, self.reason, self.node_died = worker, reason, node_died

    def __str__(self) -> str:
        return f"{self.worker} was lost: {self.reason}"


class DataLostError(OrchestratorError):
    """The data that an actor needs (rollouts, weights) was lost with the process or node that held it.
    `worker`, which needed it, is healthy: no actor is restarted, and the data is produced again.
    """

    def __init__(self, worker: str, reason: str) -> None:
        super().__init__(worker, reason)
        self.worker, self.reason = worker, reason

    def __str__(self) -> str:
        return f"The data for {self.worker} was lost: {self.reason}"


class FailureBudgetExceededError(OrchestratorError):
    """A tolerated kind of failure happened more often than its budget allows."""

    def __init__(self, what: str, count: int, budget: int, last: str) -> None:
        super().__init__(what, count, budget, last)
        self.what, self.count, self.budget, self.last = what, count, budget, last

    def __str__(self) -> str:
        exceeded = f"{self.count} failures exceed the budget of {self.budget}"
        return f"{self.what}: {exceeded}; the last one: {self.last}"


class NonFiniteError(OrchestratorError):
    """A loss or a gradient norm is NaN or infinite. The run fails instead of finishing normally."""

    def __init__(self, what: str, value: float, step: int) -> None:
        super().__init__(what, value, step)
        self.what, self.value, self.step = what, value, step

    def __str__(self) -> str:
        return f"{self.what} is {self.value} at step {self.step}: the update was not applied"


class StorageError(OrchestratorError):
    """An actor could not write to a disk because it is full, read-only or failing."""

    def __init__(self, actor: str, reason: str) -> None:
        super().__init__(actor, reason)
        self.actor, self.reason = actor, reason

    def __str__(self) -> str:
        return f"{self.actor} could not write: {self.reason}"


class CheckpointError(OrchestratorError):
    """A checkpoint cannot be written, or its digests do not match. The last good checkpoint is unchanged."""


class CheckpointFormatError(CheckpointError):
    """A checkpoint was written in another format, by another version of this program. It is not damaged."""


class CheckpointConflictError(CheckpointError):
    """Another process writes checkpoints of the same run to the same store, so this process must stop."""


class BudgetStopError(OrchestratorError):
    """The run reached its hard budget limit, wrote a checkpoint and stopped."""

    exit_code = 3


class DrainedError(OrchestratorError):
    """The run was asked to stop (Ctrl-C, SIGTERM, preemption), wrote a checkpoint and can be resumed."""

    exit_code = 4
