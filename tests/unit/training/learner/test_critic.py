"""Generalised advantage estimation and the value loss, against hand-computed numbers and the paper's sums."""

from __future__ import annotations

import torch

from orchestrator.training.learner.critic import gae, value_losses
from orchestrator.training.learner.losses.token_rows import TokenRows
from orchestrator.training.learner.micro_batch import ValueTargets


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rows(*lengths: int) -> TokenRows:
    """Rows with these numbers of trained tokens, one after the other."""
    index = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64))
    return TokenRows(index, len(lengths))


def assert_columns(got: torch.Tensor, *expected: float) -> None:
    torch.testing.assert_close(got, column(*expected), rtol=0, atol=1e-12)


def test_gae_of_rows_of_two_none_and_three_tokens() -> None:
    # gamma 0.5, lam 0.5. First row, reward 1, values 0.4 and 0.2:
    #   delta 1 - 0.2 = 0.8 at the last token, 0.5 x 0.2 - 0.4 = -0.3 at the first; -0.3 + 0.25 x 0.8 = -0.1
    # Third row, reward 2, values 0, 1, 4:
    #   delta -2, 0.5 x 4 - 1 = 1, 0.5 x 1 - 0 = 0.5; advantages -2, 1 - 0.5 = 0.5, 0.5 + 0.125 = 0.625
    advantages = gae(column(1, 1, 2, 2, 2), column(0.4, 0.2, 0, 1, 4), rows(2, 0, 3), 0.5, 0.5)
    assert_columns(advantages, -0.1, 0.8, 0.625, 0.5, -2)


def test_with_lam_1_the_advantage_is_the_discounted_reward_minus_the_value() -> None:
    advantages = gae(column(8, 8, 8), column(1, 2, 3), rows(3), 0.5, 1.0)
    assert_columns(advantages, 0.25 * 8 - 1, 0.5 * 8 - 2, 8 - 3)


def test_with_lam_0_the_advantage_is_the_temporal_difference() -> None:
    advantages = gae(column(8, 8, 8), column(1, 2, 3), rows(3), 0.5, 0.0)
    assert_columns(advantages, 0.5 * 2 - 1, 0.5 * 3 - 2, 8 - 3)


def test_gae_is_the_weighted_sum_of_equation_16() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths, gamma, lam = (5, 1, 9), 0.97, 0.8
    values = torch.randn(15, generator=generator, dtype=torch.float64)
    rewards = torch.repeat_interleave(column(1.0, -0.5, 2.0), torch.tensor(lengths))
    expected: list[float] = []
    start = 0
    for length in lengths:
        own = [*values[start : start + length].tolist(), 0.0]
        deltas = [
            (float(rewards[start]) if t == length - 1 else 0.0) + gamma * own[t + 1] - own[t]
            for t in range(length)
        ]
        expected += [
            sum((gamma * lam) ** k * deltas[t + k] for k in range(length - t)) for t in range(length)
        ]
        start += length
    assert_columns(gae(rewards, values, rows(*lengths), gamma, lam), *expected)


def test_gae_of_no_tokens() -> None:
    assert gae(column(), column(), rows(), 1.0, 0.95).shape == (0,)
    assert gae(column(), column(), rows(0), 1.0, 0.95).shape == (0,)


def test_the_value_loss_takes_the_larger_error() -> None:
    # Old value 0, clip 0.5; the errors of the value and of the clipped value, the larger one halved:
    #   V 0.25, return 1: 0.5625 and 0.5625     V 0.9, return 1: 0.01 and 0.25, clipped
    #   V 2, return 0:    4 and 0.25            V -1, return 1:  4 and 2.25
    values = column(0.25, 0.9, 2, -1).requires_grad_()
    targets = ValueTargets(column(0, 0, 0, 0), column(1, 1, 0, 1))
    losses, clipped = value_losses(values, targets, 0.5)
    assert_columns(losses.detach(), 0.28125, 0.125, 2, 2)
    (gradient,) = torch.autograd.grad(losses.sum(), values)
    assert_columns(gradient, -0.75, 0, 2, -2)
    assert clipped.tolist() == [False, True, False, False]


def test_without_a_clip_the_value_loss_is_half_the_squared_error() -> None:
    targets = ValueTargets(column(0, 0), column(1, -1))
    losses, clipped = value_losses(column(0.9, 2), targets, None)
    assert_columns(losses, 0.005, 4.5)
    assert not clipped.any()


def test_the_gradient_of_the_value_loss_matches_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    values, old, returns = torch.randn(3, 64, generator=generator, dtype=torch.float64)
    targets = ValueTargets(old, returns)
    assert value_losses(values, targets, 0.3)[1].any()
    assert torch.autograd.gradcheck(
        lambda x: value_losses(x, targets, 0.3)[0], values.clone().requires_grad_()
    )
