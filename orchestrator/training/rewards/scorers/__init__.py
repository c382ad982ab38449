"""The registry of scorers, with one file for each. `reward.components` selects and weights them.

    @SCORERS.register("brevity")
    def brevity(completion: Completion) -> float: ...

Third parties register scorers under the entry point group `orchestrator.scorer`, or `reward.components` names
a function directly as `my_package.my_module:function`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import traceback
from typing import cast

from orchestrator.errors import ConfigError
from orchestrator.training.registry import NoFacts, Registry
from orchestrator.training.rewards.completion import AnyScorer

_KEY = "reward.components"
SCORERS: Registry[AnyScorer, NoFacts] = Registry(
    "scorer", "orchestrator.training.rewards.scorers", NoFacts, key=_KEY
)


def load_scorer(key: str) -> AnyScorer:
    """Return the scorer of a registered name, or the function at `module:function`.

    Raises ConfigError if it does not exist, if its module cannot be imported, or if it
    cannot be called with one argument.
    """
    try:
        scorer = _find(key)
    except ConfigError:
        raise
    except Exception as error:
        allowed = "a registered scorer, or module:function that can be imported"
        raise ConfigError(_KEY, key, allowed, _import_failure(error)) from error
    if not callable(scorer) or inspect.isclass(scorer):
        raise ConfigError(_KEY, key, "a function of one Completion", f"it is a {type(scorer).__name__}")
    if inspect.isasyncgenfunction(scorer) or inspect.isgeneratorfunction(scorer):
        raise ConfigError(_KEY, key, "a function that returns a number", "it is a generator: it yields")
    try:
        inspect.signature(scorer).bind(None)
    except TypeError as error:
        hint = f"{error}; further arguments need default values"
        raise ConfigError(_KEY, key, "a function of one Completion", hint) from error
    except ValueError:
        pass  # functions implemented in C have no signature
    return cast("AnyScorer", scorer)


def is_own(key: str) -> bool:
    """Whether the scorer is part of this package."""
    return key.isidentifier() and importlib.util.find_spec(f"{__name__}.{key}") is not None


def _find(key: str) -> object:
    module, colon, name = key.partition(":")
    return getattr(importlib.import_module(module), name) if colon else SCORERS.get(key)


def _import_failure(error: Exception) -> str:
    """Describe the error, with the line of the scorer's module that raised it, if there is one."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{type(error).__name__}: {error}"
    inside_import = frame.filename.startswith("<frozen") or frame.filename in (__file__, importlib.__file__)
    return text if inside_import else f"{text} ({frame.filename}, line {frame.lineno})"
