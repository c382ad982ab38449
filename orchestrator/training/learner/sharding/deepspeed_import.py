"""Imports DeepSpeed without two packages that it imports and a learner never uses."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Generator
from types import ModuleType
from unittest.mock import patch


def import_deepspeed() -> ModuleType:
    """Import DeepSpeed after the rank has joined its group (`distributed.join` sets the device).

    DeepSpeed logs only warnings, and to stderr. Its shared-memory collectives are disabled, because they
    would be compiled at the first use; gloo does not need them. A rank starts two seconds of CPU time earlier
    without MLflow, which only DeepSpeed's autotuner uses, and TorchInductor, which only its Muon optimizer
    uses: Muon's functions stay uncompiled.
    """
    with _missing("mlflow"):
        deepspeed = importlib.import_module("deepspeed")
    with patch.dict(os.environ, TORCHDYNAMO_DISABLE="1"):
        # deepspeed.initialize imports this module for its check of the optimizer's type.
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    for handler in logger.handlers:
        # Only DeepSpeed's own handler, which writes to stdout, not handlers that others have added.
        if type(handler) is logging.StreamHandler:
            handler.setStream(sys.stderr)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextlib.contextmanager
def _missing(package: str) -> Generator[None]:
    """Make `import package` raise ImportError, unless it has been imported already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
