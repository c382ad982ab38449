"""Verifies that the learner is exact: ranks, expert parallel sizes, ZeRO stages and objectives against one
plain torch process in float32, which tests/support/plain_training.py implements from the papers.

    python benchmarks/learner_exactness.py [--json] [--models tiny_moe qwen3_moe ...] [--world-sizes 1 2 4]
        [--stages 0 1 2 3] [--objectives token kl_k3 ...]

There are two tables: every number of ranks, expert parallel size and ZeRO stage of every model with one
objective, and every objective (aggregations, KL penalties, truncated importance sampling, minibatches, weight
decay, masks, dual clip, routing replay, and all of them together) on four shapes of one model. Both sides
train the same model on the same batches of unequal lengths, with SGD and with AdamW, for ten steps in the
first table and five in the second. The balance loss is on, selection biases start away from zero and change,
and every step is clipped:

- loss: largest difference over the steps. It is a mean of terms of size 1 that may pass through zero, so the
  difference is absolute.
- grad_norm: largest difference over the steps, relative to the largest norm;
- param_max: largest elementwise difference of a parameter after SGD;
- param_l2: largest relative L2 difference of a parameter after AdamW. AdamW divides a gradient by its own
  size, so where the gradient is nearly zero, rounding alone determines the sign of an element's step:
  elementwise differences are meaningless there, and the epsilon is 1e-6 so that they do not dominate.

`exact`: loss within 1e-7, grad_norm and param_l2 within 1e-6, param_max within 1e-5. `offered`: the config
accepts the combination.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import torch

from benchmarks.machine import write_result
from tests.support.exactness_ranks import Difference, compare, run_ranks, steps_of
from tests.support.exactness_setting import OBJECTIVES, OPTIMIZERS, Case, OptimizerName, Training
from tests.support.moe_families import MODELS
from tests.support.plain_training import train_plainly

OBJECTIVE_SHAPES = ((1, 1, 1), (2, 1, 2), (2, 1, 3), (2, 2, 1))
"""Ranks, expert parallel size and ZeRO stage of the second table."""


def cases_of(arguments: argparse.Namespace) -> list[Case]:
    """The cases of both tables."""
    ranks = [
        Case(model, world_size, size, stage)
        for world_size in arguments.world_sizes
        for model in arguments.models
        for size in (1, 2, 4)
        if world_size % size == 0
        for stage in arguments.stages
    ]
    objectives = [
        Case("tiny_moe", *shape, objective)
        for shape in OBJECTIVE_SHAPES
        if shape[0] in arguments.world_sizes
        for objective in arguments.objectives
        if objective != "token"
    ]
    return [*ranks, *objectives]


def measure(cases: Sequence[Case]) -> list[Difference]:
    """Compute the rows of all cases. Cases with the same number of ranks share their processes."""
    torch.set_num_threads(1)
    plain: dict[tuple[str, str], dict[OptimizerName, Training]] = {}
    for case in cases:
        key = (case.model, case.objective)
        if key not in plain:
            plain[key] = {name: train_plainly(*key[:1], name, key[1], steps_of(case)) for name in OPTIMIZERS}
    found: dict[Case, Difference] = {}
    for world_size in sorted({case.world_size for case in cases}):
        chosen = [case for case in cases if case.world_size == world_size]
        for case, learned in zip(chosen, run_ranks(chosen), strict=True):
            found[case] = compare(case, plain[case.model, case.objective], learned)
    return [found[case] for case in cases]


def print_table(rows: Sequence[Difference]) -> None:
    """Print one line per case."""
    print("model        objective     ranks  EP  ZeRO     loss  grad norm  param L2  param max  exact")
    for row in rows:
        shape = f"{row.world_size:>5} {row.expert_parallel_size:>3} {row.zero_stage:>5}"
        scalars = f"{row.loss:>9.1e} {row.grad_norm:>10.1e}"
        parameters = f"{row.param_l2:>9.1e} {row.param_max:>10.1e}"
        exact = "yes" if row.exact else "NO"
        print(f"{row.model:<12} {row.objective:<13} {shape}", scalars, parameters, f"{exact:>6}")


def main() -> int:
    """Print both tables. The exit code is 1 if an offered combination is not exact."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--world-sizes", nargs="+", type=int, default=[1, 2, 4], choices=(1, 2, 4))
    parser.add_argument("--stages", nargs="+", type=int, default=[0, 1, 2, 3], choices=range(4))
    parser.add_argument("--objectives", nargs="*", default=list(OBJECTIVES), choices=OBJECTIVES)
    arguments = parser.parse_args()
    rows = measure(cases_of(arguments))
    write_result("learner_exactness", [asdict(row) for row in rows])
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        print_table(rows)
    return 0 if all(row.exact for row in rows if row.offered) else 1


if __name__ == "__main__":
    sys.exit(main())
