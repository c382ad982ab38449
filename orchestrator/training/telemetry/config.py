"""The configuration of experiment tracking and of the rollout records."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.training.settings import Settings


class DeliveryConfig(Settings):
    """How records reach the tracking server without holding up the run."""

    interval_seconds: float = Field(ge=0)
    """Records are collected for this long and sent together."""
    capacity: int = Field(ge=1)
    """How many steps' metrics, and how many other records, wait in memory for a server that is away; the
    oldest are dropped first.
    """
    first_retry_seconds: float = Field(gt=0)
    """The first pause before asking again; it doubles up to `max_retry_seconds`."""
    max_retry_seconds: float = Field(gt=0)
    """The longest pause before the server is asked again."""
    finish_seconds: float = Field(ge=0)
    """How long the end of a run waits for what is still to be sent."""


class TrackingConfig(Settings):
    """The `tracking` group."""

    backend: Literal["mlflow", "none"]
    """`none` still writes metrics.jsonl, rollouts and the report."""
    uri: str | None
    """The MLflow tracking URI; null: SQLite under the output directory."""
    experiment: str
    """The MLflow experiment that the run is in."""
    sampled_rollouts: int = Field(ge=0)
    """Rollouts a step that are shown as a table in MLflow."""
    record_every: int = Field(ge=1)
    """Steps between two steps whose rollouts are written to Parquet in full."""
    max_lost_records: int = Field(ge=0)
    """How many of these files may fail to be written over the run (a full disk) before it fails."""
    delivery: DeliveryConfig
