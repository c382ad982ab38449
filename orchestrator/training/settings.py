"""The base class of every config: frozen, complete, and closed to unknown keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen pydantic model that forbids unknown keys and never guesses types from strings of
    the wrong kind.

    Defaults live in `conf/`, not here: a value that a run used can always be read in its `config.yaml`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
