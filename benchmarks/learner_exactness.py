"""Is the learner exact? Every number of ranks, expert parallel size and ZeRO stage against one plain torch
process, in float32.

    python benchmarks/learner_exactness.py [--json] [--models tiny_moe qwen3_moe ...] [--world-sizes 1 2 4]
    [--stages 0 1 2 3]

The plain process is plain_training.py. Both train the same model for ten steps on the same batches of unequal
lengths, with SGD and with AdamW:

- loss, grad_norm: largest relative difference over the steps;
- param_max: largest elementwise difference of a parameter after ten steps of SGD;
- param_l2: largest relative L2 difference of a parameter after ten steps of AdamW. It divides a gradient by
  its own size, so where it is nearly zero rounding alone decides the sign of an element's step: elementwise
  differences mean nothing there, and the epsilon is 1e-6 here, so that they do not drown the rest.

`exact`: loss, grad_norm and param_l2 within 1e-6, param_max within 1e-5. `offered`: the config accepts the
combination.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.exactness_setting import (
    OPTIMIZERS,
    STEPS,
    Case,
    OptimizerName,
    Training,
    batch,
    learner_config,
    optimizer_factory,
    update_rule,
)
from benchmarks.machine import write_result
from benchmarks.moe_families import MODELS, build
from benchmarks.plain_training import train_plainly
from benchmarks.ranks import start_ranks
from orchestrator.training.learner.deepspeed_learner import DeepSpeedLearner, PolicyModel
from orchestrator.training.learner.sharding.distributed import DistributedInit
from orchestrator.training.models.characters import character_tokenizer
from orchestrator.training.tensors.buckets import unflatten


@dataclass(frozen=True, slots=True)
class Difference:
    """A row of the table: the case, and how far it is from the plain process."""

    model: str
    world_size: int
    expert_parallel_size: int
    zero_stage: int
    loss: float
    grad_norm: float
    param_l2: float
    param_max: float
    exact: bool
    offered: bool


def build_rank(
    case: Case, rank: int, port: int, optimizer_name: OptimizerName = "adamw", device: str = "cpu"
) -> DeepSpeedLearner:
    """One rank of the learner on this machine, over gloo on CPUs and NCCL on GPUs (`device` "cuda": one a
    rank); blocks until the others have come.
    """
    config = learner_config(case, optimizer_name)
    place = device if device == "cpu" else f"{device}:{rank}"
    return DeepSpeedLearner(
        DistributedInit(rank, case.world_size, "127.0.0.1", port, "auto", place),
        config,
        update_rule(),
        PolicyModel(build(case.model), character_tokenizer(64)),
        STEPS,
        optimizer_factory(optimizer_name, config),
    )


def train_with_learner(
    case: Case, rank: int, port: int, optimizer_name: OptimizerName, device: str
) -> Training:
    """One rank of the learner; parameters are what it publishes, on rank 0."""
    learner = build_rank(case, rank, port, optimizer_name, device)
    reports = [learner.update(step, batch(step)) for step in range(STEPS)]
    published = {name: tensor.clone() for name, tensor in unflatten(learner.weights())}
    learner.close()
    return Training(
        [report.metrics["policy/loss"] for report in reports],
        [report.metrics["policy/grad_norm"] for report in reports],
        published,
    )


def rank_main(rank: int, port: int, cases: Sequence[Case], directory: str, device: str = "cpu") -> None:
    """All cases of one number of ranks, in one set of processes (importing DeepSpeed takes longer than
    training).
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
    """What `rank_main` left in `directory`."""
    loaded = [torch.load(Path(directory) / f"{index}.pt") for index in range(cases)]
    return [{key: Training(**value) for key, value in results.items()} for results in loaded]


def compare(
    case: Case, plain: Mapping[OptimizerName, Training], learner: Mapping[OptimizerName, Training]
) -> Difference:
    """How far the learner is from the plain process."""
    loss = max(_relative(plain[name].losses, learner[name].losses) for name in plain)
    grad_norm = max(_relative(plain[name].grad_norms, learner[name].grad_norms) for name in plain)
    l2 = max(
        float((tensor - learner["adamw"].parameters[name]).norm() / tensor.norm().clamp(min=1e-12))
        for name, tensor in plain["adamw"].parameters.items()
    )
    largest = max(
        float((tensor - learner["sgd"].parameters[name]).abs().max())
        for name, tensor in plain["sgd"].parameters.items()
    )
    exact = max(loss, grad_norm, l2) <= 1e-6 and largest <= 1e-5
    return Difference(
        **asdict(case),
        loss=loss,
        grad_norm=grad_norm,
        param_l2=l2,
        param_max=largest,
        exact=exact,
        offered=True,
    )


def _relative(expected: Sequence[float], got: Sequence[float]) -> float:
    """Largest |difference|, as a share of the largest expected value: a loss may pass through zero, where its
    own relative error says nothing.
    """
    scale = max(abs(value) for value in expected)
    if not all(math.isfinite(value) for value in got):
        return math.inf
    return max(abs(e - g) for e, g in zip(expected, got, strict=True)) / scale


def measure(models: Sequence[str], world_sizes: Sequence[int], stages: Sequence[int]) -> list[Difference]:
    """The whole table."""
    torch.set_num_threads(1)
    plain: dict[str, dict[OptimizerName, Training]] = {
        model: {name: train_plainly(model, name) for name in OPTIMIZERS} for model in models
    }
    found: list[Difference] = []
    for world_size in world_sizes:
        cases = [
            Case(model, world_size, size, stage)
            for model in models
            for size in (1, 2, 4)
            if world_size % size == 0
            for stage in stages
        ]
        learned = run_ranks(cases)
        found += [compare(case, plain[case.model], got) for case, got in zip(cases, learned, strict=True)]
    return found


def print_table(rows: Sequence[Difference]) -> None:
    """One line a combination."""
    print("model        ranks  EP  ZeRO     loss  grad norm  param L2  param max  exact")
    for row in rows:
        shape = f"{row.model:<12} {row.world_size:>5} {row.expert_parallel_size:>3} {row.zero_stage:>5}"
        scalars = f"{row.loss:>9.1e} {row.grad_norm:>10.1e}"
        parameters = f"{row.param_l2:>9.1e} {row.param_max:>10.1e}"
        print(shape, scalars, parameters, f"{'yes' if row.exact else 'NO':>6}")


def main() -> int:
    """Print the table; exit 1 if a combination that is offered is not exact."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--world-sizes", nargs="+", type=int, default=[1, 2, 4], choices=(1, 2, 4))
    parser.add_argument("--stages", nargs="+", type=int, default=[0, 1, 2, 3], choices=range(4))
    arguments = parser.parse_args()
    rows = measure(arguments.models, arguments.world_sizes, arguments.stages)
    write_result("learner_exactness", [asdict(row) for row in rows])
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        print_table(rows)
    return 0 if all(row.exact for row in rows if row.offered) else 1


if __name__ == "__main__":
    sys.exit(main())
