"""Python environments of actors: which interpreter a role runs under, and whether it can run our actors.

Some engines depend on versions of packages that conflict with the learner's. Their rollout workers run in an
environment of their own, and exchange only plain objects, numpy arrays and bytes with the other actors.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement

from orchestrator.errors import ConfigError
from orchestrator.training.cluster.config import EnvironmentsConfig
from orchestrator.training.rollouts.engines import EngineEnvironment
from orchestrator.training.usage import Role

PROBE_SECONDS = 60.0

_PROBE = """
import importlib.util, json, sys
from importlib.metadata import distributions
versions = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in distributions()}
print(json.dumps({
    "python": ".".join(map(str, sys.version_info[:2])),
    "versions": versions,
    "modules": [name for name in sys.argv[1:] if importlib.util.find_spec(name) is not None],
}))
"""
"""Describes an environment as JSON. Its arguments are names of modules; none of them is imported."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """What the probe found out about a Python interpreter."""

    python: str
    """`<major>.<minor>`."""
    versions: Mapping[str, str]
    """Versions of its distributions, by name."""
    modules: frozenset[str]
    """Those of the modules asked for that it can find."""


Probe = Callable[[Path, tuple[str, ...]], Interpreter]


def interpreters(environments: EnvironmentsConfig, engine: EngineEnvironment | None) -> dict[Role, str]:
    """The interpreter of each role whose actors do not run under this Python. Rollout workers with an engine
    that has its own environment run there, unless `cluster.environments.rollout` names another one.
    """
    found = {role: path for role in Role if (path := getattr(environments, role.value)) is not None}
    if engine is not None:
        found.setdefault(Role.ROLLOUT, str(default_interpreter(engine)))
    return {role: os.path.abspath(path) for role, path in found.items()}  # noqa: PTH100 - a link of a venv must stay


def default_interpreter(engine: EngineEnvironment) -> Path:
    """Where `make engines` creates the environment: beside the environment of this Python."""
    return Path(sys.prefix).parent / f".venv-{engine.name}" / "bin" / "python"


def check_interpreters(
    environments: EnvironmentsConfig, engine: EngineEnvironment | None, probe: Probe | None = None
) -> None:
    """Raise ConfigError for an interpreter that is missing or cannot run the actors of its role."""
    for role, path in interpreters(environments, engine).items():
        needed = engine if role is Role.ROLLOUT else None
        problem = interpreter_problem(Path(path), needed, probe or probe_interpreter)
        if problem is not None:
            configured = getattr(environments, role.value)
            raise ConfigError(
                f"cluster.environments.{role.value}",
                f"null, which is {path}" if configured is None else configured,
                _allowed(needed),
                problem if needed is None else f"{problem}; {needed.remedy}",
            )


def interpreter_problem(path: Path, engine: EngineEnvironment | None, probe: Probe) -> str | None:
    """Why actors cannot run under this interpreter; None if they can."""
    if not path.is_file():
        return "there is no such file"
    if not os.access(path, os.X_OK):
        return "the file is not executable"
    modules = ("orchestrator", "ray", *(engine.modules if engine else ()))
    try:
        found = probe(path, modules)
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        return f"it does not run as a Python interpreter ({type(error).__name__})"
    return _problem(found, modules, engine)


def probe_interpreter(path: Path, modules: tuple[str, ...]) -> Interpreter:
    """Run the interpreter and ask what it has. This is quick, because none of the modules is imported."""
    ran = subprocess.run(
        [str(path), "-c", _PROBE, *modules],
        capture_output=True,
        text=True,
        timeout=PROBE_SECONDS,
        check=True,
    )
    found = json.loads(ran.stdout)
    return Interpreter(found["python"], found["versions"], frozenset(found["modules"]))


def _problem(found: Interpreter, modules: tuple[str, ...], engine: EngineEnvironment | None) -> str | None:
    here = _python()
    if found.python != here:
        return f"it is Python {found.python}"
    missing = [module for module in modules if module not in found.modules]
    if missing:
        return f"it cannot import {', '.join(missing)}"
    ray, needed = found.versions.get("ray"), version("ray")
    if ray != needed:
        return f"it has ray {ray}"
    for requirement in map(Requirement, engine.requires if engine else ()):
        has = found.versions.get(requirement.name)
        if has is not None and not requirement.specifier.contains(has, prereleases=True):
            return f"it has {requirement.name} {has}, which is not {requirement.specifier}"
    return None


def _allowed(engine: EngineEnvironment | None) -> str:
    packages = [f"ray {version('ray')}", "rl-orchestrator", *(engine.modules if engine else ())]
    return f"the path of a Python {_python()} with {', '.join(packages)}"


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"
