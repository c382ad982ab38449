"""Is the learner exact? Every number of ranks, expert parallel size and ZeRO stage against one plain torch
process, in float32.

    python benchmarks/learner_exactness.py [--json] [--models tiny_moe qwen3_moe ...] [--world-sizes 1 2 4]
    [--stages 0 1 2 3]

The plain process is tests/support/plain_training.py. Both train the same model for ten steps on the same
batches of unequal lengths, with SGD and with AdamW:

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
import sys
from collections.abc import Sequence
from dataclasses import asdict

import torch

from benchmarks.machine import write_result
from tests.support.exactness_ranks import Difference, compare, run_ranks
from tests.support.exactness_setting import OPTIMIZERS, Case, OptimizerName, Training
from tests.support.moe_families import MODELS
from tests.support.plain_training import train_plainly


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
