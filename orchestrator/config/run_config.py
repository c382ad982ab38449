"""The config of one run: what `conf/` composes to, what `config.yaml` in a run directory holds.

Each part of the flow owns its own config; this module only puts them together. It knows neither
Hydra nor files.
"""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from orchestrator.masking import masked
from orchestrator.training.advantages.config import AlgorithmConfig
from orchestrator.training.cluster.config import ClusterConfig
from orchestrator.training.learner.config import LearnerConfig
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.prompts.config import TaskConfig
from orchestrator.training.rewards.config import RewardConfig
from orchestrator.training.rollouts.config import RolloutConfig
from orchestrator.training.settings import Settings
from orchestrator.training.telemetry.config import TrackingConfig
from orchestrator.training.weights.config import WeightsConfig

Label = Annotated[str, Field(min_length=1, max_length=200)]
SECRETS = {
    ("ledger", "url"): "ORCHESTRATOR_LEDGER_URL",
    ("budget", "webhook"): "ORCHESTRATOR_BUDGET_WEBHOOK",
}
"""URLs that config.yaml does not keep whole (part, key), and the environment variables that have them."""

Purpose = Literal["final", "ablation", "sweep", "debug", "failed", "data", "evaluation", "distillation"]


class CheckpointConfig(Settings):
    """When the run is written down so that it can go on after a stop."""

    every: int = Field(ge=0)
    """Steps between two checkpoints; 0: only at the end and when the run is drained."""
    keep: int = Field(ge=1)
    """How many of the newest checkpoints are kept."""
    asynchronous: bool
    """Training goes on while a checkpoint is written: the step only waits for a copy in memory, as large as
    the rank's share of the float32 weights and the optimizer's state.
    """
    store: str | None
    """Where checkpoints are copied to, so that another machine can go on: a directory or
    `s3://bucket/prefix`; null: they stay in the run directory.
    """
    store_failures: int = Field(ge=0)
    """How many copies in a row may fail before the run does."""
    store_retry_seconds: float = Field(ge=0)
    """The pause between two attempts to copy the last checkpoint, when the run only waits for that."""
    drain_seconds: float = Field(gt=0)
    """How long a run that is asked to stop (Ctrl-C, SIGTERM, SIGHUP) may take for the step under way and the
    checkpoint. After that it stops in the middle of the step, and the last checkpoint stands.
    """


class EvaluationConfig(Settings):
    """When the held-out prompts are answered and scored."""

    every: int = Field(ge=0)
    """Steps between two evaluations; the first is before step 1, the last after the last step.
    0: no evaluation.
    """
    engine: str
    """The rollout engine that answers them, by registered name: the model itself, also where training plays
    back worked solutions.
    """
    prompts: int = Field(ge=1)
    """How many of the task's held-out prompts are used."""
    samples: int = Field(ge=0)
    """How many further answers to each prompt are sampled for pass@k and maj@k; 0: only the greedy one."""
    temperature: float = Field(gt=0)
    """The sampling temperature of those answers. DeepSeek-R1 was evaluated at 0.6."""
    top_p: float = Field(gt=0, le=1)
    """Nucleus sampling of those answers; nothing is trained on them. DeepSeek-R1 was evaluated at 0.95."""


class LedgerConfig(Settings):
    """Where the usage events of the run are booked."""

    url: str | None
    """An SQLAlchemy URL (`sqlite:///...`, `postgresql+psycopg://...`); null: SQLite under the output
    directory. A password in it is written nowhere: a run that is resumed takes the URL of the environment's
    ORCHESTRATOR_LEDGER_URL, or of `ledger.url=...`.
    """


class BudgetConfig(Settings):
    """What the run may cost."""

    limit: Decimal | None = Field(ge=0)
    """The run makes a checkpoint and stops (exit 3) before it costs more; null: no limit."""
    warn_at: tuple[Annotated[float, Field(gt=0, le=1)], ...]
    """Shares of the limit at which the run warns."""
    currency: str = Field(pattern=r"^[A-Z]{3}$")
    """ISO 4217 code of `limit` and of all reported costs."""
    webhook: str | None = Field(pattern=r"^https?://[!-~]+$")
    """Where each warning is posted to, as JSON; null: nowhere. What follows its server is a secret and
    written nowhere: a run that is resumed takes the URL of the environment's ORCHESTRATOR_BUDGET_WEBHOOK, or
    of `budget.webhook=...`.
    """
    stop_seconds: float = Field(ge=0)
    """What an orderly stop may take beyond the step under way: a checkpoint, giving back the slots. Money for
    it is set aside from the start.
    """
    break_off_seconds: float = Field(ge=0)
    """Time needed to cancel a run in the middle of a step: killing the actors, giving back the slots. A run
    that was asked to stop is cancelled if it is still in the same step when no more than this (or
    `stop_seconds`, if that is less) is left; a resumed run repeats what it did since its last checkpoint.
    """
    reserve_seconds: float = Field(gt=0)
    """For how long a run reserves money of the budgets that it shares, beside what a stop will cost."""
    expire_seconds: float = Field(gt=0)
    """After how long the reservation of a run that died is given back."""


class StageConfig(Settings):
    """One stage of a pipeline: a job of its own."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """What the pipeline calls it."""
    job: str
    """The job that carries it out."""
    overrides: tuple[str, ...]
    """Hydra overrides of that job, applied in this order."""


class RunConfig(Settings):
    """Everything that a run needs to know; written to `config.yaml` before it starts.

    A pipeline is a run with `stages`; its stages run one after another, each with a `RunConfig` of its own.
    """

    job: str
    """The name of the job, which is the name of its file in `conf/`."""
    seed: int = Field(ge=0)
    """Of everything that is drawn at random, except the data (`task.seed`)."""
    steps: int = Field(ge=0)
    """Learner steps (weight versions) that the run makes."""
    max_staleness: int = Field(ge=0)
    """How many weight versions a rollout may be behind the learner when it is trained on; 0 is
    synchronous training.
    """
    purpose: Purpose
    """What the run is for. The headline cost of a model counts `final` runs, the full cost all of them."""
    organisation: Label
    """Who pays: the ledger's first level."""
    cost_centre: Label
    """The account of the organisation that is charged."""
    team: Label
    """Who runs it."""
    project: Label
    """What it is done for; also the default name of the tracking experiment."""
    model: ModelConfig
    task: TaskConfig
    rollout: RolloutConfig
    reward: RewardConfig
    algorithm: AlgorithmConfig
    learner: LearnerConfig
    weights: WeightsConfig
    cluster: ClusterConfig
    tracking: TrackingConfig
    price_book: dict[str, Any]
    """The prices of the resources; read by the ledger."""
    checkpoint: CheckpointConfig
    evaluation: EvaluationConfig
    ledger: LedgerConfig
    budget: BudgetConfig
    output_dir: Path
    """Where run directories are made."""
    stages: tuple[StageConfig, ...]
    """The stages of a pipeline; empty for every other job."""

    def to_json(self) -> dict[str, Any]:
        """The config as plain JSON values, for files and people: amounts of money are decimal strings, paths
        are strings, and passwords in URLs and webhooks are masked.
        """
        return masked(self.model_dump(mode="json"))

    def to_yaml(self) -> str:
        """The config as YAML that `orchestrator.config.load` reads back to an equal config, but for
        what is masked.
        """
        return yaml.safe_dump(self.to_json(), sort_keys=False, allow_unicode=True, width=110)


def json_schema() -> str:
    """The JSON Schema of a composed config, indented."""
    return json.dumps(RunConfig.model_json_schema(), indent=2) + "\n"
