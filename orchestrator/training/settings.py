"""The base class of all configs: frozen, complete, and closed to unknown keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen pydantic model that rejects unknown keys, infinity and NaN.

    Defaults are in `conf/`, not here, so that every value of a run can be read in its `config.yaml`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
