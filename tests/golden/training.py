"""The trainings whose losses are stored as text files: one seeded rank of the
learner in this process, on the CPU.

    python -m tests.golden.training        # write the files again, after an intended change

A change of a golden file belongs in the commit that explains it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from orchestrator.training.advantages import ADVANTAGES
from orchestrator.training.learner.deepspeed_learner import DeepSpeedLearner, PolicyModel
from orchestrator.training.learner.losses import LOSSES
from orchestrator.training.learner.rows import AlgorithmSpec
from orchestrator.training.models.characters import character_tokenizer
from tests.support.exactness_ranks import single_rank
from tests.support.exactness_setting import (
    Case,
    Objective,
    batch,
    learner_config,
    model_of,
    reference_of,
    update_rule,
)

FOLDER = Path(__file__).parent / "losses"
STEPS = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Golden:
    """A training: its batches, and the objective that the learner minimises on them."""

    batches: Objective
    spec: Callable[[], AlgorithmSpec]


def _supervised() -> AlgorithmSpec:
    rule = update_rule()
    objective = dataclasses.replace(rule.objective, policy=LOSSES.get("nll"))
    advantages = ADVANTAGES.get("constant")
    return dataclasses.replace(
        rule, advantages=advantages, objective=objective, drop_uninformative=False, temperature=1.0
    )


_GRPO = Objective(aggregation="sequence", kl="k3", kl_coefficient=0.04)
_TIS = Objective(truncation=2.0, dual_clip=3.0, minibatches=3, gap=0.5)
GOLDEN: Mapping[str, Golden] = {
    "grpo": Golden(_GRPO, lambda: update_rule(_GRPO)),
    "grpo_tis": Golden(_TIS, lambda: update_rule(_TIS)),
    "sft": Golden(Objective(), _supervised),
}


def losses(name: str) -> list[float]:
    """`policy/loss` of each step of the training `name`."""
    golden = GOLDEN[name]
    config = learner_config(Case("tiny_moe", 1, 1, 1), "adamw").model_copy(
        update={"learning_rate": 3e-3, "minibatches": golden.batches.minibatches}
    )
    reference = reference_of("tiny_moe") if golden.batches.kl is not None else None
    model = PolicyModel(model_of("tiny_moe"), character_tokenizer(64), reference)
    learner = DeepSpeedLearner(single_rank(), config, golden.spec(), model, STEPS)
    found = [
        learner.update(step, batch(step, golden.batches)).metrics["policy/loss"] for step in range(STEPS)
    ]
    learner.close()
    return found


def read(name: str) -> list[float]:
    """The losses in the file `name`."""
    lines = (FOLDER / f"{name}.txt").read_text().splitlines()
    return [float(line.partition(",")[2]) for line in lines[1:]]


def main() -> None:
    """Write all files."""
    for name in GOLDEN:
        rows = [f"{step},{value:.9g}" for step, value in enumerate(losses(name), start=1)]
        (FOLDER / f"{name}.txt").write_text("\n".join(["step,value", *rows]) + "\n")


if __name__ == "__main__":
    main()
