"""What every actor of a run is told when it is made."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from orchestrator.clock import SystemClock
from orchestrator.training.advantages.config import AlgorithmConfig
from orchestrator.training.learner.config import LearnerConfig
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.rewards.config import RewardConfig
from orchestrator.training.rollouts.config import RolloutConfig
from orchestrator.training.usage import Role, SpoolSink
from orchestrator.training.usage_meter import UsageMeter
from orchestrator.training.weights.config import WeightsConfig


@dataclass(frozen=True, slots=True)
class RunSpec:
    """The parts' configs and what they have in common; the same for all actors of a run."""

    run_id: str
    attempt: int
    directory: Path
    """The run directory, absolute; every node must see it."""
    seed: int
    steps: int
    evaluation_engine: str
    use_gpu: bool
    snapshots: bool
    """Checkpoints are written from a copy, beside the steps that follow."""
    model: ModelConfig
    rollout: RolloutConfig
    reward: RewardConfig
    algorithm: AlgorithmConfig
    learner: LearnerConfig
    weights: WeightsConfig
    """When an actor reads it, each `auto` has been replaced by what was chosen."""


@dataclass(frozen=True, slots=True)
class ActorIdentity:
    """Who one actor is: its name over restarts, which life this is, and the leases it works on."""

    name: str
    role: Role
    life: int
    leases: tuple[str, ...]


def start_meter(parts: RunSpec, post: ActorIdentity) -> UsageMeter:
    """The actor's own spool file and meter. Each life of an actor writes a file of its own."""
    spool = parts.directory / "ledger" / f"{parts.attempt}-{post.name}-{post.life}.jsonl"
    return UsageMeter(SpoolSink(spool), SystemClock(), post.leases, post.name, post.role)


def log_to_run_directory(parts: RunSpec, post: ActorIdentity) -> None:
    """Send this process's log lines to `logs/<actor>.log`: Ray's own log files go with the machine."""
    path = parts.directory / "logs" / f"{post.name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        filename=path,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    logging.getLogger(__name__).info("%s, life %d, is process %d", post.name, post.life, os.getpid())
