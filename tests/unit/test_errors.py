import inspect
import pickle
from typing import Any

import pytest

from orchestrator import errors
from orchestrator.errors import (
    BudgetStopError,
    ConfigError,
    DataLostError,
    DrainedError,
    FailureBudgetExceededError,
    InputError,
    NonFiniteError,
    OrchestratorError,
    StateError,
    StorageError,
    WorkerLostError,
)

KINDS = sorted(
    (kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, OrchestratorError)),
    key=lambda kind: kind.__name__,
)
ARGUMENTS: dict[type[OrchestratorError], tuple[Any, ...]] = {
    ConfigError: ("max_staleness", "-1", "0 or more", "0 is synchronous training"),
    WorkerLostError: ("rollout-3", "died"),
    DataLostError: ("reward-0", "its node is gone"),
    StorageError: ("learner-1", "No space left on device"),
    FailureBudgetExceededError: ("workers lost", 4, 3, "rollout-3 died"),
    NonFiniteError: ("policy/loss", float("inf"), 12),
    OrchestratorError: ("what went wrong",),
}
"""Examples by the nearest class that defines their arguments."""


def example(kind: type[OrchestratorError]) -> OrchestratorError:
    return kind(*next(ARGUMENTS[base] for base in kind.__mro__ if base in ARGUMENTS))


def name_of(kind: type[OrchestratorError]) -> str:
    return kind.__name__


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_an_error_survives_a_process_boundary(kind: type[OrchestratorError]) -> None:
    error = example(kind)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert again.args == error.args
    assert vars(again) == vars(error)
    assert str(again) == str(error)
    assert again.exit_code == error.exit_code


def test_all_errors_have_one_base() -> None:
    assert [kind for kind in vars(errors).values() if inspect.isclass(kind) and kind not in KINDS] == []


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ConfigError("steps", "x", "a number"), "steps: got x, allowed: a number"),
        (ConfigError("steps", "x", "a number", "try 3"), "steps: got x, allowed: a number (try 3)"),
        (WorkerLostError("rollout-1", "died"), "rollout-1 was lost: died"),
        (
            FailureBudgetExceededError("workers lost", 4, 3, "rollout-1 died"),
            "workers lost: 4 failures exceed the budget of 3; the last one: rollout-1 died",
        ),
        (
            NonFiniteError("policy/loss", float("nan"), 7),
            "policy/loss is nan at step 7: the update was not applied",
        ),
    ],
)
def test_an_error_is_a_sentence(error: OrchestratorError, sentence: str) -> None:
    assert str(error) == sentence


def test_exit_codes() -> None:
    codes = {kind: kind.exit_code for kind in KINDS if not issubclass(kind, InputError | StateError)}
    assert codes.pop(BudgetStopError) == 3
    assert codes.pop(DrainedError) == 4
    assert set(codes.values()) == {1}
    assert (InputError.exit_code, StateError.exit_code) == (2, 2)
    assert {kind.exit_code for kind in KINDS if issubclass(kind, ConfigError)} == {2}


def test_lost_data_is_distinguished_from_a_lost_worker() -> None:
    assert not issubclass(DataLostError, WorkerLostError)
