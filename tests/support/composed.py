"""Configs of jobs that many tests begin with. Hydra takes a tenth of a second to compose one."""

from __future__ import annotations

import functools

from orchestrator.config.compose import compose
from orchestrator.config.run_config import RunConfig


@functools.cache
def composed(job: str, *overrides: str) -> RunConfig:
    """As `compose`, which is called once for the same arguments. A `RunConfig` is frozen."""
    return compose(job, overrides)
