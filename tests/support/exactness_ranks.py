"""Trains with ranks of the learner and compares the result with one plain torch process.

`exact`: losses within 1e-7 (they are means of terms of size 1), gradient norms and the relative L2 difference
of each parameter within 1e-6, and elementwise differences after SGD within 1e-5.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from orchestrator.training.learner.deepspeed_learner import DeepSpeedLearner, PolicyModel
from orchestrator.training.learner.sharding.distributed import DistributedInit
from orchestrator.training.models.characters import character_tokenizer
from orchestrator.training.tensors.buckets import unflatten
from tests.support.exactness_setting import (
    OPTIMIZERS,
    STEPS,
    Case,
    OptimizerName,
    Training,
    batch,
    learner_config,
    model_of,
    optimizer_factory,
    reference_of,
    update_rule,
)
from tests.support.ranks import start_ranks, tcp_store


@dataclass(frozen=True, slots=True)
class Difference:
    """A row of the table: the case, and its difference from the plain process."""

    model: str
    world_size: int
    expert_parallel_size: int
    zero_stage: int
    objective: str
    loss: float
    grad_norm: float
    param_l2: float
    param_max: float
    exact: bool
    offered: bool


def steps_of(case: Case) -> int:
    """Ten for the table of ranks, five for the table of objectives."""
    return STEPS if case.objective == "token" else STEPS // 2


def single_rank() -> DistributedInit:
    """The only rank, in this process, on the CPU."""
    return DistributedInit(0, 1, "auto", "cpu")


def build_rank(
    case: Case, rank: int, port: int, optimizer_name: OptimizerName = "adamw", device: str = "cpu"
) -> DeepSpeedLearner:
    """Build one rank of the learner on this machine, over gloo on CPUs and NCCL on GPUs (`device` "cuda": one
    per rank). Blocks until the others have connected.
    """
    config = learner_config(case, optimizer_name)
    place = device if device == "cpu" else f"{device}:{rank}"
    return DeepSpeedLearner(
        DistributedInit(rank, case.world_size, "auto", place, tcp_store(rank, case.world_size, port)),
        config,
        update_rule(case.minimised),
        PolicyModel(
            model_of(case.model),
            character_tokenizer(64),
            reference_of(case.model) if case.minimised.kl is not None else None,
        ),
        STEPS,
        optimizer_factory(optimizer_name, config),
    )


def train_with_learner(
    case: Case, rank: int, port: int, optimizer_name: OptimizerName, device: str
) -> Training:
    """Train with one rank. The parameters are those that the learner publishes on rank 0."""
    learner = build_rank(case, rank, port, optimizer_name, device)
    reports = [learner.update(step, batch(step, case.minimised)) for step in range(steps_of(case))]
    published = {name: tensor.clone() for name, tensor in unflatten(learner.weights())}
    learner.close()
    return Training(
        [report.metrics["policy/loss"] for report in reports],
        [report.metrics["policy/grad_norm"] for report in reports],
        published,
    )


def rank_main(rank: int, port: int, cases: Sequence[Case], directory: str, device: str = "cpu") -> None:
    """Run all cases with one number of ranks in one set of processes, because importing
    DeepSpeed takes longer than training.
    """
    torch.set_num_threads(1)
    for index, case in enumerate(cases):
        results = {name: train_with_learner(case, rank, port, name, device) for name in OPTIMIZERS}
        if rank == 0:
            torch.save(
                {key: asdict(value) for key, value in results.items()}, Path(directory) / f"{index}.pt"
            )


def run_ranks(cases: Sequence[Case]) -> list[dict[OptimizerName, Training]]:
    """Train every case with the learner; all cases have the same number of ranks."""
    with tempfile.TemporaryDirectory() as directory:
        start_ranks(cases[0].world_size, rank_main, cases, directory)
        return read_results(len(cases), directory)


def read_results(cases: int, directory: str) -> list[dict[OptimizerName, Training]]:
    """Read the results that `rank_main` wrote to `directory`."""
    loaded = [torch.load(Path(directory) / f"{index}.pt") for index in range(cases)]
    return [{key: Training(**value) for key, value in results.items()} for results in loaded]


def compare(
    case: Case, plain: Mapping[OptimizerName, Training], learner: Mapping[OptimizerName, Training]
) -> Difference:
    """The difference between the learner and the plain process."""
    loss = max(_largest(plain[name].losses, learner[name].losses) for name in plain)
    grad_norm = max(
        _largest(plain[name].grad_norms, learner[name].grad_norms) / max(plain[name].grad_norms)
        for name in plain
    )
    l2 = max(
        float((tensor - learner["adamw"].parameters[name]).norm() / tensor.norm().clamp(min=1e-12))
        for name, tensor in plain["adamw"].parameters.items()
    )
    largest = max(
        float((tensor - learner["sgd"].parameters[name]).abs().max())
        for name, tensor in plain["sgd"].parameters.items()
    )
    exact = loss <= 1e-7 and max(grad_norm, l2) <= 1e-6 and largest <= 1e-5
    return Difference(
        **asdict(case),
        loss=loss,
        grad_norm=grad_norm,
        param_l2=l2,
        param_max=largest,
        exact=exact,
        offered=True,
    )


def _largest(expected: Sequence[float], got: Sequence[float]) -> float:
    """The largest difference; infinite if a value is not finite."""
    if not all(math.isfinite(value) for value in got):
        return math.inf
    return max(abs(e - g) for e, g in zip(expected, got, strict=True))
