"""Where metrics go."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.training.settings import Settings


class TrackingConfig(Settings):
    """The `tracking` group."""

    backend: Literal["mlflow", "none"]
    """`none` still writes metrics.jsonl, rollouts and the report."""
    uri: str | None
    """The MLflow tracking URI; null: SQLite under the output directory."""
    experiment: str
    sampled_rollouts: int = Field(ge=0)
    """Rollouts a step that are shown as a table in MLflow."""
    record_every: int = Field(ge=1)
    """Steps between two steps whose rollouts are written to Parquet in full."""
