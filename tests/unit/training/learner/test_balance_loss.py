"""The sequence-wise auxiliary loss: its value according to the paper's formula,
and its gradient through a model.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orchestrator.training.learner.balance_loss import SequenceBalanceLoss, sequence_balance
from orchestrator.training.learner.micro_batch import collate
from orchestrator.training.learner.rows import minibatch_rows
from orchestrator.training.models.routers import BIAS, RouteReplay, find_routers, observe
from tests.fakes.rollout_batches import random_part
from tests.support.exactness_setting import update_rule
from tests.support.moe_families import build

CPU = torch.device("cpu")


def by_the_formula(scores: Tensor, k: int) -> float:
    """Equations 17 to 20 for one sequence, expert by expert: f_i counts the tokens whose k largest
    scores include i.
    """
    tokens, experts = scores.shape
    largest = [sorted(range(experts), key=row.__getitem__)[-k:] for row in scores.tolist()]
    total = 0.0
    for expert in range(experts):
        f = experts / (k * tokens) * sum(expert in row for row in largest)
        p = sum(float(scores[t, expert] / scores[t].sum()) for t in range(tokens)) / tokens
        total += f * p
    return total


def test_the_value_is_that_of_the_papers_formula_for_each_sequence() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(9, 6, generator=generator)
    rows = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1])
    real = torch.tensor([True] * 4 + [False] + [True] * 4)
    expected = by_the_formula(scores[:4], 2) + by_the_formula(scores[5:], 2)
    assert float(sequence_balance(scores, 2, rows, real)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("model", ["tiny_moe", "deepseek_v3"])
@pytest.mark.parametrize("replayed", [False, True])
def test_biases_group_limits_and_replayed_routes_do_not_affect_the_balance_loss(
    model: str, replayed: bool
) -> None:
    """`deepseek_v3` limits a token to two of four groups of experts."""
    (rows,) = minibatch_rows([random_part(0, 3, 2, vocabulary=48)], update_rule(), 1)
    batch = collate(rows, "padded")
    built = build(model).train()
    (router,) = find_routers(built).values()
    bias = getattr(router, BIAS)
    bias.copy_(0.2 * torch.randn(bias.shape, generator=torch.Generator().manual_seed(1)))
    seen: list[tuple[Tensor, Tensor]] = []
    replay = RouteReplay(built)
    observe(router, lambda logits, chosen: seen.append((logits.detach().float().sigmoid(), chosen)))
    balance = SequenceBalanceLoss(built, 0.5, CPU)
    balance.begin(len(rows), ranks=1)
    if replayed:
        replay.use(torch.tensor([6, 7]).expand(batch.input_ids.numel(), 1, 2))
    balance.use(batch)
    with balance.counting():
        built(batch.input_ids, use_cache=False)
    ((scores, chosen),) = seen
    assert not torch.equal(chosen.sort(dim=-1).values, scores.topk(2).indices.sort(dim=-1).values)
    wanted = sum(by_the_formula(scores[batch.rows.eq(row) & batch.real], 2) for row in range(len(rows)))
    assert float(balance._value) == pytest.approx(0.5 * wanted / len(rows), rel=1e-5)  # pyright: ignore[reportPrivateUsage]


def test_perfect_balance_costs_one_and_one_expert_for_all_costs_the_most() -> None:
    even = torch.ones(4, 4)
    rows, real = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool)
    assert float(sequence_balance(even + 0.1 * torch.eye(4), 1, rows, real)) == pytest.approx(1)
    one = torch.tensor([[1.0, 0, 0, 0]] * 4)
    assert float(sequence_balance(one, 1, rows, real)) == pytest.approx(4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_does_not_depend_on_micro_batches_or_checkpointing(checkpointing: bool) -> None:
    (rows,) = minibatch_rows([random_part(0, 3, 2, vocabulary=48)], update_rule(), 1)
    gradients: list[Tensor] = []
    for split in (1, 3):
        model = build("tiny_moe").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        balance = SequenceBalanceLoss(model, 0.5, CPU)
        balance.begin(len(rows), ranks=1)
        for start in range(0, len(rows), len(rows) // split):
            batch = collate(rows[start : start + len(rows) // split], "padded")
            balance.use(batch)
            (model(batch.input_ids, use_cache=False).logits.sum() * 0).backward()
        (router,) = find_routers(model).values()
        assert isinstance(router.weight, Tensor)
        assert router.weight.grad is not None
        gradients.append(router.weight.grad)
    assert gradients[0].abs().sum() > 1e-4
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


def test_without_the_balance_loss_there_is_no_gradient() -> None:
    model = build("tiny_moe").train()
    balance = SequenceBalanceLoss(model, 0.0, CPU)
    balance.begin(1, ranks=1)
    assert balance.take() == {}
