"""Configuration passed to every actor of a run, and what each actor sets up from it first."""

from __future__ import annotations

import faulthandler
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
    """The configuration of one attempt at a run; the same for all of its actors."""

    run_id: str
    attempt: int
    directory: Path
    """The run directory, an absolute path that every node must be able to read and write."""
    seed: int
    steps: int
    evaluation_engine: str
    use_gpu: bool
    snapshots: bool
    """Whether checkpoints are written from a copy of the state while training continues."""
    model: ModelConfig
    rollout: RolloutConfig
    reward: RewardConfig
    algorithm: AlgorithmConfig
    learner: LearnerConfig
    weights: WeightsConfig


@dataclass(frozen=True, slots=True)
class ActorIdentity:
    """Identifies one actor process."""

    name: str
    """`<role>-<index>`, the same for all of its incarnations."""
    role: Role
    incarnation: int
    """0 for the first process of that name; rises by one with each restart."""
    leases: tuple[str, ...]
    """Ids of the ledger leases of the slot that the actor runs on."""


def start_meter(spec: RunSpec, identity: ActorIdentity) -> UsageMeter:
    """The actor's usage meter. Each incarnation writes its own spool file."""
    file = f"{spec.attempt}-{identity.name}-{identity.incarnation}.jsonl"
    sink = SpoolSink(spec.directory / "ledger" / file)
    return UsageMeter(sink, SystemClock(), identity.leases, identity.name, identity.role)


def log_to_run_directory(spec: RunSpec, identity: ActorIdentity) -> None:
    """Append this process's log to `logs/<actor>.log`; Ray's own log files are lost with the machine. A crash
    of native code (SIGSEGV, SIGABRT, ...) writes the Python stack of all threads there.
    """
    path = spec.directory / "logs" / f"{identity.name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.open("a", encoding="utf-8")
    logging.basicConfig(
        handlers=[logging.StreamHandler(log)],
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    faulthandler.enable(log)
    logging.getLogger(__name__).info(
        "%s, incarnation %d, is process %d", identity.name, identity.incarnation, os.getpid()
    )
