"""Connects to a Ray cluster or starts Ray on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Generator
from typing import Any

import ray

from orchestrator.errors import OrchestratorError
from orchestrator.training.cluster.authentication import connection_hint, use_token
from orchestrator.training.cluster.config import ClusterConfig


class ClusterError(OrchestratorError):
    """The cluster cannot provide what the run needs."""


@contextlib.contextmanager
def ray_session(config: ClusterConfig, slots: int) -> Generator[None]:
    """Connect to `config.address`, or start Ray on this machine with `slots` x `slot_cpus` CPUs, for as long
    as the body runs. Raises ClusterError if that fails.
    """
    # A failed call is raised where it is awaited. Without this Ray also prints the error of every call that
    # is no longer awaited.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # Placement shares out whole GPUs and CPUs: Ray must not hide the GPU from an actor whose share is 0.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    local: dict[str, Any] = {
        "num_cpus": max(1, round(slots * config.slot_cpus)),
        "object_store_memory": config.object_store_bytes,
    }
    if config.address is not None:
        use_token()
    try:
        ray.init(
            address=config.address,
            include_dashboard=False if config.address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            namespace="orchestrator",
            **({} if config.address else local),
        )
    except Exception as error:  # Ray raises a bare Exception if its own processes do not start in time
        raise ClusterError(_failure(config.address, error)) from error
    try:
        yield
    finally:
        ray.shutdown()


def _failure(address: str | None, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    if address is not None:
        return f"Cannot connect to Ray at {address}: {reason}. {connection_hint()}"
    if "AF_UNIX path length" in reason:
        reason += "; set RAY_TMPDIR to a shorter path, for example /tmp"
    return f"Cannot start Ray on this machine: {reason}."
