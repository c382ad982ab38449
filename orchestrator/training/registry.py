"""Names for parts that a config can choose: one file registers itself, a third party adds an entry point,
nobody forks.

    ADVANTAGES: Registry[AdvantageEstimator] = Registry("advantage",
    package="orchestrator.training.advantages")

    @ADVANTAGES.register("rloo")
    def rloo(...): ...

A name is looked up among what is registered, then as the module of that name inside `package` (so that only
what a run uses is imported), then among the entry points of the group `orchestrator.<kind>` of installed
packages.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from orchestrator.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """The parts of one kind, by name."""

    def __init__(self, kind: str, package: str) -> None:
        self._kind, self._package = kind, package
        self._parts: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that adds a part. Raises ValueError if another part has the name."""

        def add(part: T) -> T:
            if self._parts.setdefault(name, part) is not part:
                raise ValueError(f"{self._kind} {name!r} is registered twice")
            return part

        return add

    def get(self, name: str) -> T:
        """The part of that name. Raises ConfigError, with the names there are, if there is none."""
        if name not in self._parts:
            self._import(name)
        if name not in self._parts:
            raise ConfigError(self._kind, name, ", ".join(self.names()))
        return self._parts[name]

    def names(self) -> list[str]:
        """All names, whether or not they were imported yet. A module with a leading underscore, and `config`,
        name no part.
        """
        package = importlib.import_module(self._package)
        modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
        found = {name for name in modules if not name.startswith("_") and name != "config"}
        found |= {point.name for point in entry_points(group=f"orchestrator.{self._kind}")}
        return sorted(found | set(self._parts))

    def _import(self, name: str) -> None:
        if name.isidentifier() and importlib.util.find_spec(f"{self._package}.{name}") is not None:
            importlib.import_module(f"{self._package}.{name}")
        for point in entry_points(group=f"orchestrator.{self._kind}", name=name):
            self._parts.setdefault(name, point.load())
