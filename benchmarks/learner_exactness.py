"""Is the learner exact? Every number of ranks, expert parallel size and ZeRO stage against one plain torch
process, in float32.

    python benchmarks/learner_exactness.py [--json] [--models tiny_moe qwen3_moe ...] [--world-sizes 1 2 4]
    [--stages 0 1 2 3]

The plain process is written for clarity, not speed: one row at a time, no padding, no packing, no DeepSpeed,
`log_softmax` over all logits. Both train the same model for ten steps on the same batches of unequal lengths,
with SGD and with AdamW:

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.multiprocessing as mp
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.machine import write_result
from benchmarks.moe_families import MODELS, VOCABULARY, build
from orchestrator.training.advantages import ADVANTAGES
from orchestrator.training.buckets import unflatten
from orchestrator.training.learner.config import LearnerConfig
from orchestrator.training.learner.deepspeed_learner import DeepSpeedLearner, Trainee
from orchestrator.training.learner.distributed import DistributedInit, free_port
from orchestrator.training.learner.losses import LOSSES, ClipRange
from orchestrator.training.learner.losses.objective import Objective
from orchestrator.training.learner.rows import TrainingRow, UpdateRule, minibatch_rows
from orchestrator.training.learner.zero import OptimizerFactory, adamw
from orchestrator.training.models.characters import character_tokenizer
from orchestrator.training.models.routers import find_routers
from orchestrator.training.records import BatchPart
from tests.fakes.rollout_batches import random_part

OptimizerName = Literal["sgd", "adamw"]

STEPS = 10
OPTIMIZERS: tuple[OptimizerName, ...] = ("sgd", "adamw")
LEARNING_RATES: dict[OptimizerName, float] = {"sgd": 0.1, "adamw": 3e-4}
CLIP = (0.2, 0.28)
BALANCE = 0.01


@dataclass(frozen=True, slots=True)
class Case:
    """One combination."""

    model: str
    world_size: int
    expert_parallel_size: int
    zero_stage: int


@dataclass(frozen=True, slots=True)
class Training:
    """What ten steps gave: losses and norms a step, parameters and persistent buffers at the end."""

    losses: list[float]
    grad_norms: list[float]
    parameters: dict[str, Tensor]


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


def learner_config(case: Case, optimizer_name: OptimizerName) -> LearnerConfig:
    """Micro-batches so small that a rank has several; a norm so small that every step is clipped."""
    values: dict[str, Any] = {
        "world_size": case.world_size,
        "zero_stage": case.zero_stage,
        "expert_parallel_size": case.expert_parallel_size,
        "micro_batch_tokens": 60,
        "minibatches": 1,
        "learning_rate": LEARNING_RATES[optimizer_name],
        "warmup_steps": 2,
        "schedule": "constant",
        "final_learning_rate": 0.0,
        "adam_betas": (0.9, 0.99),
        "adam_epsilon": 1e-6,
        "weight_decay": 0.0,
        "max_grad_norm": 0.2,
        "router_bias_update_speed": 0.001,
        "sequence_balance_coefficient": BALANCE,
        "bucket_bytes": 4096,
        "activation_checkpointing": False,
        "offload": "none",
        "lora": {"rank": 0, "alpha": 16, "target_modules": ("all-linear",)},
        "threads": 1,
        "max_restarts": 0,
        "backend": "auto",
    }
    return LearnerConfig(**values)


def update_rule() -> UpdateRule:
    """GRPO's advantage with a token-level clipped loss, at a temperature that is not 1."""
    return UpdateRule(
        advantages=ADVANTAGES.get("grpo"),
        objective=Objective(LOSSES.get("clipped"), ClipRange(*CLIP), None, 0.0, "k3"),
        aggregation="token",
        drop_uninformative=True,
        temperature=0.9,
        max_new_tokens=16,
    )


def batch(step: int) -> list[BatchPart]:
    """Two blocks of unequal rollouts: 9 groups of 4, 36 rows of 3 to 21 tokens."""
    return [
        random_part(2 * step, 5, 4, vocabulary=VOCABULARY, lengths=(1, 15)),
        random_part(2 * step + 1, 4, 4, vocabulary=VOCABULARY, lengths=(1, 6)),
    ]


def optimizer_factory(name: OptimizerName, config: LearnerConfig) -> OptimizerFactory:
    """The learner's own AdamW, or SGD."""
    return (
        adamw(config) if name == "adamw" else lambda groups: torch.optim.SGD(groups, lr=config.learning_rate)
    )


def train_plainly(name: str, optimizer_name: OptimizerName, steps: int = STEPS) -> Training:
    """The reference: one process, one row at a time."""
    model, rule = build(name).train(), update_rule()
    config = learner_config(Case(name, 1, 1, 0), optimizer_name)
    parameters = list(model.parameters())
    optimizer: torch.optim.Optimizer
    if optimizer_name == "sgd":
        optimizer = torch.optim.SGD(parameters)
    else:
        optimizer = torch.optim.AdamW(
            parameters, betas=config.adam_betas, eps=config.adam_epsilon, weight_decay=config.weight_decay
        )
    losses: list[float] = []
    grad_norms: list[float] = []
    for step in range(steps):
        (rows,) = minibatch_rows(batch(step), rule, 1)
        chosen: dict[str, Tensor] = {}
        hooks = _record_choices(model, chosen)
        balance: list[Tensor] = []
        hooks += _record_balance(model, balance)
        computed = sum(row.advantage != 0 for row in rows)
        loss = 0.0
        for row in rows:
            balance.clear()
            row_loss = _row_loss(model, row, rule.temperature)
            if (
                row.advantage != 0
            ):  # what `drop_uninformative` leaves out has no gradient, and no say in the balance
                (row_loss + BALANCE * torch.stack(balance).sum() / computed).backward()
                _commit_choices(chosen)
            loss += float(row_loss.detach())
        for hook in hooks:
            hook.remove()
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
        rate = config.learning_rate * min(1.0, (step + 1) / config.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        _balance(model, chosen, config.router_bias_update_speed)
        losses.append(loss)
        grad_norms.append(norm)
    return Training(losses, grad_norms, _state(model))


def _row_loss(model: PreTrainedModel, row: TrainingRow, temperature: float) -> Tensor:
    tokens = torch.from_numpy(row.tokens).long()
    logits = model(input_ids=tokens[None], use_cache=False).logits[0].float() / temperature
    logprobs = torch.log_softmax(logits, dim=-1)[:-1].gather(1, tokens[1:, None]).squeeze(1)
    ratio = torch.exp(logprobs[row.prompt_length - 1 :] - torch.from_numpy(row.logprobs))
    low, high = CLIP
    surrogate = torch.minimum(ratio * row.advantage, ratio.clamp(1 - low, 1 + high) * row.advantage)
    return -(surrogate * row.weight).sum()


def _record_choices(model: PreTrainedModel, chosen: dict[str, Tensor]) -> list[Any]:
    """Note what each DeepSeek-V3 router chose, as loads of experts, under `pending`."""

    def note(name: str) -> Any:  # noqa: ANN401
        def hook(module: Any, inputs: Any, outputs: Any) -> None:  # noqa: ANN401
            del inputs
            chosen[f"pending/{name}"] = torch.bincount(outputs[2].flatten(), minlength=module.num_experts)

        return hook

    return [
        module.register_forward_hook(note(name))
        for name, module in model.named_modules()
        if hasattr(module, "e_score_correction_bias")
    ]


def _record_balance(model: PreTrainedModel, found: list[Tensor]) -> list[Any]:
    """Note for each router how even it is: sum_i f_i P_i of DeepSeek-V3's sequence-wise loss."""

    def note(router: Any, _inputs: Any, outputs: Any) -> None:  # noqa: ANN401
        logits, _, picked = outputs
        sigmoid = hasattr(router, "e_score_correction_bias")
        scores = logits.float().sigmoid() if sigmoid else logits.float().softmax(dim=-1)
        frequency = torch.bincount(picked.flatten(), minlength=router.num_experts).float()
        share = (scores / scores.sum(dim=-1, keepdim=True)).mean(dim=0)
        found.append(torch.dot(frequency * router.num_experts / picked.numel(), share))

    return [router.register_forward_hook(note) for router in find_routers(model).values()]


def _commit_choices(chosen: dict[str, Tensor]) -> None:
    for key in [key for key in chosen if key.startswith("pending/")]:
        name = key.removeprefix("pending/")
        chosen[name] = chosen.get(name, torch.zeros_like(chosen[key])) + chosen[key]


@torch.no_grad()
def _balance(model: PreTrainedModel, chosen: Mapping[str, Tensor], speed: float) -> None:
    for name, module in model.named_modules():
        bias = getattr(module, "e_score_correction_bias", None)
        if isinstance(bias, Tensor) and name in chosen:
            loads = chosen[name].double()
            bias += speed * torch.sign(loads.mean() - loads).to(bias)


def _state(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


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
        Trainee(build(case.model), character_tokenizer(64)),
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


def rank_main(rank: int, cases: Sequence[Case], port: int, directory: str, device: str = "cpu") -> None:
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


def start_ranks(world_size: int, main: Callable[..., None], cases: object, directory: str) -> None:
    """Run `main(rank, cases, port, directory)`, one process a rank, to the end. Raises what a rank raised."""
    arguments = (cases, free_port("127.0.0.1"), directory)
    mp.start_processes(  # pyright: ignore[reportPrivateImportUsage] - public in the documentation
        main, args=arguments, nprocs=world_size, start_method="spawn"
    )


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
