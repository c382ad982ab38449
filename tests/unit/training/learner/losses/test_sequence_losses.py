"""Losses with one ratio per rollout, against hand-computed numbers and the formulas of the papers."""

from __future__ import annotations

import math

import pytest
import torch

from orchestrator.training.learner.losses import LOSSES, ClipRange, PolicyColumns, PolicyTerms
from orchestrator.training.learner.losses.aggregation import rollout_token_weights
from orchestrator.training.learner.losses.token_rows import TokenRows

SEQUENCE_LOSSES = ["gspo", "gmpo"]


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rows(*lengths: int) -> TokenRows:
    """Rows with these numbers of trained tokens, one after the other."""
    index = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64))
    return TokenRows(index, len(lengths))


def evaluate(
    name: str, ratios: list[float], advantages: list[float], lengths: tuple[int, ...], clip: ClipRange
) -> tuple[PolicyTerms, torch.Tensor]:
    """The terms of tokens with these ratios, and the gradient of the mean loss over
    rollouts. A rollout has one advantage.
    """
    old = torch.full((len(ratios),), 0.25, dtype=torch.float64).log()
    logprobs = (old + column(*ratios).log()).requires_grad_()
    spread = torch.repeat_interleave(column(*advantages), torch.tensor(lengths))
    terms = LOSSES.get(name)(PolicyColumns(logprobs, old, spread, rows(*lengths)), clip)
    weights = rollout_token_weights(torch.tensor(lengths), "sequence", max_new_tokens=8)
    loss = torch.dot(terms.loss, torch.repeat_interleave(weights, torch.tensor(lengths)))
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return terms, gradient


def assert_columns(got: torch.Tensor, *expected: float) -> None:
    torch.testing.assert_close(got, column(*expected), rtol=0, atol=1e-12)


def test_sums_and_means_are_of_the_tokens_of_a_row() -> None:
    # Rows of 2, 0 and 3 tokens.
    columns = PolicyColumns(column(), column(), column(), rows(2, 0, 3))
    values = column(1.0, 3.0, 2.0, 4.0, 9.0)
    assert_columns(columns.row_sums(values), 4, 4, 15, 15, 15)
    assert_columns(columns.row_means(values), 2, 2, 5, 5, 5)
    assert columns.row_means(values.float()).dtype == torch.float32
    assert torch.autograd.gradcheck(lambda x: columns.row_means(x).square(), values.requires_grad_())


def test_a_micro_batch_without_rows_has_no_sums() -> None:
    assert rows().sums(column()).shape == (0,)
    assert rows(0).means(column()).shape == (0,)


def test_columns_without_rows_are_an_error() -> None:
    columns = PolicyColumns(column(1.0), column(1.0), column(1.0))
    with pytest.raises(ValueError, match=r"rows: got None, allowed: the row of each token"):
        columns.row_means(column(1.0))


def test_gspo_clips_the_geometric_mean_of_a_rollout() -> None:
    # Ratios of a rollout: 2 and 1/2, sqrt(1) = 1; 4 and 1, sqrt(4) = 2; 1/4, 1 and 1/2, (1/8)^(1/3) = 1/2.
    # s A against clip(s, 0.8, 1.28) A, the smaller one, negated:
    #   s 1, A 3: 3 -> -3    s 2, A 1: 2 or 1.28 -> -1.28, clipped    s 0.5, A -2: -1 or -1.6 -> 1.6, clipped
    terms, gradient = evaluate(
        "gspo", [2, 0.5, 4, 1, 0.25, 1, 0.5], [3, 1, -2], (2, 2, 3), ClipRange(0.2, 0.28)
    )
    assert_columns(terms.ratio, 1, 1, 2, 2, 0.5, 0.5, 0.5)
    assert_columns(terms.loss.detach(), -3, -3, -1.28, -1.28, 1.6, 1.6, 1.6)
    assert terms.clipped.tolist() == [False] * 2 + [True] * 5
    # The mean over 3 rollouts of -s A; s has the gradient s / 2 at each of the 2 tokens: -1 x 3 / 2 / 3.
    assert_columns(gradient, -0.5, -0.5, 0, 0, 0, 0, 0)


def test_gspo_bounds_the_loss_of_a_negative_advantage_by_the_dual_clip() -> None:
    # s = sqrt(16 x 4) = 8, A -1: the loss 8 is bounded to 3, where the gradient is 0.
    terms, gradient = evaluate("gspo", [16, 4], [-1], (2,), ClipRange(0.2, 0.28, dual=3.0))
    assert_columns(terms.loss.detach(), 3, 3)
    assert_columns(gradient, 0, 0)


def test_gspo_of_one_token_is_clipped() -> None:
    ratios, advantages, clip = [1.5, 0.5, 1.1, 0.5], [2.0, -2.0, 1.0, 1.0], ClipRange(0.2, 0.28)
    terms, gradient = evaluate("gspo", ratios, advantages, (1, 1, 1, 1), clip)
    expected, expected_gradient = evaluate("clipped", ratios, advantages, (1, 1, 1, 1), clip)
    torch.testing.assert_close(terms.loss, expected.loss)
    torch.testing.assert_close(gradient, expected_gradient)
    assert terms.clipped.tolist() == expected.clipped.tolist()


def test_gmpo_clips_tokens_and_takes_the_geometric_mean() -> None:
    # Log ratios are bounded to [-ln 2, ln 2], on the side that A moves them to:
    #   A 3:  ratios 4 and 1/4 -> 2 and 1/4, sqrt(1/2), loss -3 sqrt(1/2); the first token is clipped
    #   A -2: ratios 4 and 1/4 -> 4 and 1/2, sqrt(2),   loss 2 sqrt(2);    the second is
    half, two = math.sqrt(0.5), math.sqrt(2)
    clip = ClipRange(math.log(2), math.log(2))
    terms, gradient = evaluate("gmpo", [4, 0.25, 4, 0.25], [3, -2], (2, 2), clip)
    assert_columns(terms.ratio, half, half, two, two)
    assert_columns(terms.loss.detach(), -3 * half, -3 * half, 2 * two, 2 * two)
    assert terms.clipped.tolist() == [True, False, False, True]
    # The mean over 2 rollouts of -A g; g has the gradient g / 2 at each of the tokens that is not clipped.
    assert_columns(gradient, 0, -3 * half / 4, 2 * two / 4, 0)


@pytest.mark.parametrize("name", SEQUENCE_LOSSES)
def test_zero_advantages_have_no_gradient(name: str) -> None:
    terms, gradient = evaluate(name, [2, 3], [0], (2,), ClipRange(0.2, 0.28))
    assert_columns(terms.loss.detach(), 0, 0)
    assert_columns(gradient, 0, 0)
    assert not terms.clipped.any()


@pytest.mark.parametrize("name", SEQUENCE_LOSSES)
def test_on_policy_the_gradient_is_that_of_the_mean_log_probability(name: str) -> None:
    # All ratios 1: -A / (rollouts x length) at each token, as for GRPO.
    _, gradient = evaluate(name, [1, 1, 1], [2, -3], (2, 1), ClipRange(0.2, 0.28))
    assert_columns(gradient, -2 / 4, -2 / 4, 3 / 2)


@pytest.mark.parametrize("name", SEQUENCE_LOSSES)
def test_gradients_match_finite_differences_and_rollouts_do_not_mix(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = (5, 1, 7, 3)
    logprobs = -torch.rand(16, generator=generator, dtype=torch.float64) * 3 - 0.1
    old = logprobs + torch.rand(16, generator=generator, dtype=torch.float64) - 0.5
    advantages = torch.repeat_interleave(column(1.5, -0.5, -2.0, 0.7), torch.tensor(lengths))
    clip = ClipRange(0.11, 0.13)

    def losses(x: torch.Tensor, part: slice, shape: TokenRows) -> torch.Tensor:
        return LOSSES.get(name)(PolicyColumns(x, old[part], advantages[part], shape), clip).loss

    whole = slice(0, 16)
    assert torch.autograd.gradcheck(
        lambda x: losses(x, whole, rows(*lengths)), logprobs.clone().requires_grad_()
    )
    together, start = losses(logprobs, whole, rows(*lengths)), 0
    for length in lengths:
        part = slice(start, start + length)
        torch.testing.assert_close(losses(logprobs[part], part, rows(length)), together[part])
        start += length


def test_facts_declare_one_ratio_per_rollout() -> None:
    assert {name for name in LOSSES.names() if LOSSES.facts(name).per_sequence} == set(SEQUENCE_LOSSES)
