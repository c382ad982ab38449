"""Registries of the components that a config selects by name, and the facts that other code relies on.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class EstimatorFacts:
        group_relative: bool = False

    ADVANTAGES: Registry[AdvantageEstimator, EstimatorFacts] = Registry(
        "advantage", "orchestrator.training.advantages", EstimatorFacts, key="algorithm.advantage"
    )

    @ADVANTAGES.register("rloo", EstimatorFacts(group_relative=True))
    def rloo(rewards: Tensor) -> Tensor: ...

A name is looked up among the registered components, then as a module of that name inside the package (so
only the components that a run uses are imported), then among the entry points `orchestrator.<kind>` of
installed packages. Third parties can therefore add components without a fork, and these are validated exactly
like built-in ones: rules and planners ask `Registry.facts(name)` and never compare names.

A component that is registered without facts gets the defaults of its facts class. Choose defaults that are
safe for an unknown component.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from orchestrator.errors import ConfigError

T = TypeVar("T")
F = TypeVar("F")


@dataclass(frozen=True, slots=True)
class NoFacts:
    """For kinds of components that declare no facts."""


class Registry(Generic[T, F]):
    """The components of one kind by name. `T` is the type of the components, `F` the class of their facts."""

    def __init__(self, kind: str, package: str, facts: type[F], *, key: str = "") -> None:
        """`kind` names the entry point group `orchestrator.<kind>`; `package` contains the modules of the
        built-in components; `facts` is a dataclass whose fields all have defaults (`NoFacts` if there are
        none); `key` is the config key that error messages name (by default the kind).
        """
        self._kind, self._package, self._default_facts, self._key = kind, package, facts, key or kind
        self._components: dict[str, T] = {}
        self._facts: dict[str, F] = {}

    def register(self, name: str, facts: F | None = None) -> Callable[[T], T]:
        """Return a decorator that registers a component. It raises ValueError if
        another component has the name.
        """

        def add(component: T) -> T:
            if self._components.setdefault(name, component) is not component:
                raise ValueError(f"{self._kind} {name!r} is registered twice")
            if facts is not None:
                self._facts[name] = facts
            return component

        return add

    def get(self, name: str) -> T:
        """Return the component with that name. Raises ConfigError if it does
        not exist or cannot be imported.
        """
        if name not in self._components:
            self._import(name)
        if name not in self._components:
            raise ConfigError(self._key, name, ", ".join(self.names()))
        return self._components[name]

    def facts(self, name: str) -> F:
        """Return the facts that the component declared, or the defaults of its kind.
        Raises ConfigError like `get`.
        """
        self.get(name)
        return self._facts[name] if name in self._facts else self._default_facts()

    def names(self) -> list[str]:
        """All names, imported or not. `config` and modules with a leading underscore are not components."""
        package = importlib.import_module(self._package)
        modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
        found = {name for name in modules if not name.startswith("_") and name != "config"}
        found |= {point.name for point in self._entry_points()}
        return sorted(found | set(self._components))

    def _entry_points(self) -> list[EntryPoint]:
        return list(entry_points(group=f"orchestrator.{self._kind}"))

    def _import(self, name: str) -> None:
        try:
            if name.isidentifier() and importlib.util.find_spec(f"{self._package}.{name}") is not None:
                importlib.import_module(f"{self._package}.{name}")
            for point in self._entry_points():
                if point.name == name:
                    self._components.setdefault(name, point.load())
        except (ImportError, AttributeError) as error:
            allowed = "an importable component"
            raise ConfigError(self._key, name, allowed, f"{type(error).__name__}: {error}") from error
