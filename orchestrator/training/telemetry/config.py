"""The `tracking` group of the config: experiment tracking and recorded rollouts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.training.settings import Settings


class DeliveryConfig(Settings):
    """How records are sent to the tracking server without delaying the run."""

    interval_seconds: float = Field(ge=0)
    """Records are collected for this long and sent together."""
    capacity: int = Field(ge=1)
    """How many steps' metrics, and how many other records, are kept in memory while the server is
    unavailable; the oldest are dropped first.
    """
    first_retry_seconds: float = Field(gt=0)
    """First pause before the server is tried again; it doubles up to `max_retry_seconds`."""
    max_retry_seconds: float = Field(gt=0)
    """Longest pause before the server is tried again."""
    finish_seconds: float = Field(ge=0)
    """How long the end of a run waits for records that are still to be sent."""


class TrackingConfig(Settings):
    """Experiment tracking and recorded rollouts."""

    backend: Literal["mlflow", "none"]
    """`none` still writes metrics.jsonl, rollouts and the report."""
    uri: str | None
    """The MLflow tracking URI; null: an SQLite database under the output directory."""
    experiment: str
    """Name of the MLflow experiment."""
    sampled_rollouts: int = Field(ge=0)
    """Number of rollouts per step that MLflow shows as a table."""
    record_every: int = Field(ge=1)
    """Rollouts are written to Parquet in full every this many steps."""
    max_lost_records: int = Field(ge=0)
    """How many of these files may fail to be written, for example because the disk
    is full, before the run fails.
    """
    delivery: DeliveryConfig
