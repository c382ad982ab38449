"""Which Python the actors of a role run under, and what is said about one that cannot run them."""

from __future__ import annotations

import stat
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.compose import compose
from orchestrator.errors import ConfigError
from orchestrator.launch.assembly import placement_of
from orchestrator.training.cluster.config import EnvironmentsConfig
from orchestrator.training.cluster.environments import (
    Interpreter,
    check_interpreters,
    default_interpreter,
    interpreters,
    probe_interpreter,
)
from orchestrator.training.cluster.slots import Slots
from orchestrator.training.rollouts.engines import EngineEnvironment
from orchestrator.training.usage import Role

ENGINE = EngineEnvironment("theirs", ("theirs",), ("theirs>=2,<3", "theirs-cpu>=2,<3"))
NOWHERE = EnvironmentsConfig(rollout=None, reward=None, learner=None)
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
GOOD = Interpreter(
    PYTHON,
    {"ray": version("ray"), "theirs-cpu": "2.1"},
    frozenset({"orchestrator", "ray", "theirs"}),
)


@pytest.fixture
def python(tmp_path: Path) -> Path:
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def refusal(python: Path, found: Interpreter) -> str:
    with pytest.raises(ConfigError) as caught:
        check_interpreters(
            NOWHERE.model_copy(update={"rollout": str(python)}), ENGINE, lambda path, modules: found
        )
    assert caught.value.key == "cluster.environments.rollout"
    assert caught.value.value == str(python)
    assert caught.value.allowed == (
        f"the path of a Python {PYTHON} with ray {version('ray')}, rl-orchestrator, theirs"
    )
    assert "`make engines`" in caught.value.hint
    return caught.value.hint


def test_roles_run_under_the_drivers_python_unless_configured_otherwise() -> None:
    assert interpreters(NOWHERE, None) == {}
    configured = NOWHERE.model_copy(update={"reward": "/opt/rewards/bin/python"})
    assert interpreters(configured, None) == {Role.REWARD: "/opt/rewards/bin/python"}


def test_an_engine_with_its_own_environment_is_found_beside_this_one() -> None:
    default = str(default_interpreter(ENGINE))
    assert default == f"{Path(sys.prefix).parent}/.venv-theirs/bin/python"
    assert interpreters(NOWHERE, ENGINE) == {Role.ROLLOUT: default}
    configured = NOWHERE.model_copy(update={"rollout": "/opt/theirs/bin/python"})
    assert interpreters(configured, ENGINE) == {Role.ROLLOUT: "/opt/theirs/bin/python"}


def test_a_missing_environment_names_the_command_that_creates_it() -> None:
    with pytest.raises(ConfigError, match="there is no such file; `make engines` creates it") as caught:
        check_interpreters(NOWHERE, ENGINE)
    assert caught.value.value == f"null, which is {default_interpreter(ENGINE)}"


def test_a_usable_interpreter_is_accepted(python: Path) -> None:
    check_interpreters(
        NOWHERE.model_copy(update={"rollout": str(python)}), ENGINE, lambda path, modules: GOOD
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"python": "3.9"}, "it is Python 3.9"),
        ({"modules": frozenset({"ray", "theirs"})}, "it cannot import orchestrator"),
        ({"modules": frozenset({"ray", "orchestrator"})}, "it cannot import theirs"),
        ({"versions": {"ray": "2.0.0", "theirs": "2.1"}}, "it has ray 2.0.0"),
        ({"versions": {"ray": version("ray"), "theirs-cpu": "1.9"}},
         "it has theirs-cpu 1.9, which is not <3,>=2"),
    ],
)  # fmt: skip
def test_an_interpreter_that_cannot_run_the_actors_is_refused(
    python: Path, changes: dict[str, Any], problem: str
) -> None:
    assert refusal(python, replace(GOOD, **changes)).startswith(problem)


def test_a_file_that_is_no_python_is_refused(python: Path) -> None:
    environments = NOWHERE.model_copy(update={"reward": str(python)})
    with pytest.raises(ConfigError, match="does not run as a Python interpreter"):
        check_interpreters(environments, None)
    python.chmod(0o600)
    with pytest.raises(ConfigError, match="not executable"):
        check_interpreters(environments, None)


def test_the_probe_describes_this_interpreter() -> None:
    found = probe_interpreter(Path(sys.executable), ("ray", "orchestrator", "nosuch_module"))
    assert found.python == PYTHON
    assert found.versions["ray"] == version("ray")
    assert found.modules == {"ray", "orchestrator"}


def test_actors_of_a_role_are_started_under_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "orchestrator.training.cluster.slots.PlacementGroupSchedulingStrategy", lambda *_: None
    )
    config = compose("grpo", ["cluster.environments.rollout=/opt/engine/bin/python"])
    (rollout, *_), (reward, *_) = (placement_of(config).of(role) for role in (Role.ROLLOUT, Role.REWARD))
    slots = object.__new__(Slots)
    slots.leases, group = (("run/1-a/0.0",),), None
    monkeypatch.setattr(slots, "_group", group, raising=False)
    assert slots.options(rollout, 0)["runtime_env"] == {"py_executable": "/opt/engine/bin/python"}
    assert "runtime_env" not in slots.options(reward, 0)
