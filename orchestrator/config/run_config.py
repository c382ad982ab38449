"""The config of one run, as composed from `conf/` and stored in `config.yaml` of its run directory.

Each component owns the config of its own group; this module only combines them. It depends neither
on Hydra nor on files.
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
from orchestrator.training.rollouts.config import RolloutConfig, StopString, TokenId
from orchestrator.training.settings import Settings
from orchestrator.training.telemetry.config import TrackingConfig
from orchestrator.training.weights.config import WeightsConfig

Label = Annotated[str, Field(min_length=1, max_length=200)]
SECRETS = {
    ("ledger", "url"): "ORCHESTRATOR_LEDGER_URL",
    ("budget", "webhook"): "ORCHESTRATOR_BUDGET_WEBHOOK",
}
"""URLs whose secrets config.yaml omits: (group, key) and the environment variable
that holds the whole URL.
"""

Purpose = Literal["final", "ablation", "sweep", "debug", "failed", "data", "evaluation", "distillation"]


class CheckpointConfig(Settings):
    """When and where checkpoints are written, from which a stopped run can be resumed."""

    every: int = Field(ge=0)
    """Steps between two checkpoints; 0: only at the end of the run and when it is asked to stop."""
    keep: int = Field(ge=1)
    """How many of the newest checkpoints are kept."""
    asynchronous: bool
    """Training continues while a checkpoint is written. The step only waits for a copy in memory, which is as
    large as the rank's share of the float32 weights and the optimizer state.
    """
    store: str | None
    """A directory or `s3://bucket/prefix` to which checkpoints are copied, so that the run can be resumed on
    another machine; null: they stay in the run directory.
    """
    store_failures: int = Field(ge=0)
    """How many consecutive copies may fail before the run fails."""
    store_retry_seconds: float = Field(ge=0)
    """Seconds between two attempts to copy the last checkpoint when nothing else is left to do."""
    drain_seconds: float = Field(gt=0)
    """How long a run that is asked to stop (Ctrl-C, SIGTERM, SIGHUP) may take to finish the current step and
    write a checkpoint. After that it is cancelled in the middle of the step, and the previous checkpoint
    remains the newest.
    """


class EvaluationConfig(Settings):
    """When and how the model is evaluated on held-out prompts."""

    every: int = Field(ge=0)
    """Steps between two evaluations; the first is before step 1, the last after the last step.
    0: no evaluation.
    """
    engine: str
    """Registered name of the rollout engine that generates the answers, by default that of the rollouts. The
    job `sft` sets `hf`: evaluations sample from the model even if training plays back worked solutions.
    """
    prompts: int = Field(ge=1)
    """How many of the task's held-out prompts are used."""
    samples: int = Field(ge=0)
    """How many additional answers per prompt are sampled for pass@k and maj@k; 0: only the greedy answer."""
    temperature: float = Field(gt=0)
    """The sampling temperature of those answers. DeepSeek-R1 was evaluated at 0.6."""
    top_p: float = Field(gt=0, le=1)
    """Nucleus sampling of those answers, which are not trained on. DeepSeek-R1 was evaluated at 0.95."""
    top_k: int = Field(ge=0)
    """Only the k most probable tokens are sampled for those answers; 0: all."""
    min_p: float = Field(ge=0, le=1)
    """Only tokens that are at least this share as probable as the most probable one are sampled for those
    answers; 0: all.
    """
    repetition_penalty: float = Field(gt=0)
    """As `rollout.repetition_penalty`, for all held-out answers, also the greedy one; 1: off."""
    stop: tuple[StopString, ...]
    """Strings that end all held-out answers, also the greedy one; by default those of `rollout.stop`."""
    stop_token_ids: tuple[TokenId, ...]
    """Ids of tokens that end all held-out answers, also the greedy one; by default those of
    `rollout.stop_token_ids`.
    """
    min_new_tokens: int = Field(ge=0)
    """The fewest tokens of all held-out answers, also of the greedy one; 0: off."""
    thinking_token_budget: int | None = Field(ge=0)
    """The most tokens that a held-out answer samples between `<think>` and `</think>`, also the greedy one;
    null: no limit. By default that of `rollout.thinking_token_budget`.
    """


class LedgerConfig(Settings):
    """Where the usage events of the run are booked."""

    url: str | None
    """An SQLAlchemy URL (`sqlite:///...`, `postgresql+psycopg://...`); null: SQLite in the output directory.
    A password in it is never stored. To resume such a run, set the environment variable
    ORCHESTRATOR_LEDGER_URL or pass `ledger.url=...` again.
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
    """URL to which each warning is posted as JSON; null: none. Everything after its host is secret and never
    stored. To resume such a run, set the environment variable ORCHESTRATOR_BUDGET_WEBHOOK or pass
    `budget.webhook=...` again.
    """
    stop_seconds: float = Field(ge=0)
    """How long an orderly stop may take after the current step: writing a checkpoint and releasing the slots.
    Money for it is reserved from the start.
    """
    cancel_seconds: float = Field(ge=0)
    """Time needed to cancel a run in the middle of a step: killing the actors and releasing the slots. A run
    that was asked to stop is cancelled if it is still in the same step when no more than this (or
    `stop_seconds`, if that is less) is left; a resumed run repeats everything since its last checkpoint.
    """
    reserve_seconds: float = Field(gt=0)
    """How many seconds of its cost a run reserves at a time in shared budgets, in addition
    to the cost of stopping.
    """
    expire_seconds: float = Field(gt=0)
    """Seconds after which the reservation of a run that died is released."""


class StageConfig(Settings):
    """One stage of a pipeline: a job of its own."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """The stage's name within the pipeline."""
    job: str
    """The job that this stage runs."""
    overrides: tuple[str, ...]
    """Hydra overrides of that job, applied in this order."""


class RunConfig(Settings):
    """The complete config of a run, which is written to `config.yaml` before the run starts.

    A pipeline is a run with `stages`, which run one after another, each with its own `RunConfig`.
    """

    job: str
    """The name of the job, which is also the name of its file in `conf/`."""
    seed: int = Field(ge=0)
    """Seed of all random draws except those of the data (`task.seed`)."""
    steps: int = Field(ge=0)
    """Learner steps of the run. Each produces a new version of the weights."""
    max_staleness: int = Field(ge=0)
    """How many weight versions a rollout may be behind the learner when it is trained on; 0 is
    synchronous training.
    """
    purpose: Purpose
    """What the run is for. A model's headline cost counts only `final` runs, its
    full cost counts all runs.
    """
    organisation: Label
    """The organisation that pays for the run: the top level of the ledger's labels."""
    cost_centre: Label
    """The cost centre of the organisation that is charged."""
    team: Label
    """The team that runs it."""
    project: Label
    """The project that it belongs to."""
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
    """Prices of the resources, which the ledger uses."""
    checkpoint: CheckpointConfig
    evaluation: EvaluationConfig
    ledger: LedgerConfig
    budget: BudgetConfig
    output_dir: Path
    """The directory in which run directories are created."""
    stages: tuple[StageConfig, ...]
    """The stages of a pipeline; empty for all other jobs."""

    def to_json(self) -> dict[str, Any]:
        """The config as plain JSON values, for files and people: amounts of money are decimal strings, paths
        are strings, and passwords in URLs and webhooks are masked.
        """
        return masked(self.model_dump(mode="json"))

    def to_yaml(self) -> str:
        """The config as YAML. `orchestrator.config.load` reads it back as an equal config,
        except for masked values.
        """
        return yaml.safe_dump(self.to_json(), sort_keys=False, allow_unicode=True, width=110)


def json_schema() -> str:
    """The JSON Schema of a composed config, indented."""
    return json.dumps(RunConfig.model_json_schema(), indent=2) + "\n"
