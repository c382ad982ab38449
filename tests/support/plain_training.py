"""What learner_exactness.py holds the learner to: one process, one row at a time, no padding, no packing, no
DeepSpeed, `log_softmax` over all logits. Written for clarity, not speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from orchestrator.training.learner.rows import TrainingRow, minibatch_rows
from orchestrator.training.models.routers import find_routers
from tests.support.exactness_setting import (
    BALANCE,
    CLIP,
    STEPS,
    Case,
    OptimizerName,
    Training,
    batch,
    learner_config,
    update_rule,
)
from tests.support.moe_families import build


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

    def note(name: str) -> Any:
        def hook(module: Any, inputs: Any, outputs: Any) -> None:
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

    def note(router: Any, _inputs: Any, outputs: Any) -> None:
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
