"""The scorers there are, by name: one file each. `reward.components` chooses and weighs them.

    @SCORERS.register("brevity")
    def brevity(completion: Completion) -> float: ...

A third party registers one by an entry point of the group `orchestrator.scorer`, or names a function
directly: `my_package.my_module:function` in place of a registered name.
"""

from __future__ import annotations

import importlib
from typing import cast

from orchestrator.errors import ConfigError
from orchestrator.training.registry import NoFacts, Registry
from orchestrator.training.rewards.completion import Scorer

SCORERS: Registry[Scorer, NoFacts] = Registry(
    "scorer", "orchestrator.training.rewards.scorers", NoFacts, key="reward.components"
)


def load_scorer(key: str) -> Scorer:
    """The scorer of a registered name, or the function at `module:function`.

    Raises ConfigError if there is none, or its module can't be imported.
    """
    module, colon, name = key.partition(":")
    if not colon:
        return SCORERS.get(key)
    try:
        scorer = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        allowed = "a registered scorer, or module:function that can be imported"
        raise ConfigError("reward.components", key, allowed, str(error)) from error
    if not callable(scorer):
        raise ConfigError("reward.components", key, "a function of one Completion")
    return cast("Scorer", scorer)
