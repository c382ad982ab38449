"""The whole objective of a token: ratio, weight and penalty, and the metrics computed from it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from orchestrator.training.learner.losses import LOSSES, ClipRange
from orchestrator.training.learner.losses.importance import Correction, importance_weights
from orchestrator.training.learner.losses.metrics import SUMS, token_means, token_sums
from orchestrator.training.learner.losses.objective import Objective, TokenColumns
from orchestrator.training.learner.losses.token_rows import TokenRows


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def objective(
    loss: str = "clipped", truncation: float | None = None, kl: float = 0.0, entropy: float = 0.0
) -> Objective:
    correction = None if truncation is None else Correction(truncation)
    return Objective(LOSSES.get(loss), ClipRange(0.2, 0.28), correction, kl, "k3", entropy)


# Probabilities of three tokens under the three policies, and their advantages.
SAMPLED = column(0.25, 0.5, 0.8).log()
PROXIMAL = column(0.5, 0.5, 0.2).log()
CURRENT = column(0.6, 0.3, 0.2).log()
ADVANTAGES = column(2.0, -1.0, 1.0)
REFERENCE = column(0.3, 0.3, 0.4).log()
ROWS = TokenRows(torch.tensor([0, 0, 1]), 2)


def columns(
    logprobs: torch.Tensor, proximal: torch.Tensor | None = PROXIMAL, reference: torch.Tensor | None = None
) -> TokenColumns:
    return TokenColumns(logprobs, SAMPLED, ADVANTAGES, proximal, reference)


@pytest.mark.parametrize(
    ("correction", "expected", "bounded"),
    [
        # p_prox / mu = 2, 1, 0.25. The first two tokens are a rollout, so its product is 2, the other's 0.25.
        (Correction(), (2, 1, 0.25), (False, False, False)),
        (Correction(1.5), (1.5, 1, 0.25), (True, False, False)),
        (Correction(1.5, 0.5, masks=True), (0, 1, 0), (True, False, True)),
        (Correction(2.0, 0.25, masks=True), (2, 1, 0.25), (False, False, False)),
        (Correction(per_sequence=True), (2, 2, 0.25), (False, False, False)),
        (Correction(1.5, per_sequence=True), (1.5, 1.5, 0.25), (True, True, False)),
        (Correction(1.5, 0.1, masks=True, per_sequence=True), (0, 0, 0.25), (True, True, False)),
    ],
    ids=str,
)
def test_weights(correction: Correction, expected: tuple[float, ...], bounded: tuple[bool, ...]) -> None:
    found = importance_weights(correction, PROXIMAL.clone().requires_grad_(), SAMPLED, ROWS)
    torch.testing.assert_close(found.weights, column(*expected))
    assert found.bounded.tolist() == list(bounded)
    assert not found.weights.requires_grad


def test_weights_of_sequences_need_the_rows_of_tokens() -> None:
    with pytest.raises(ValueError, match="rows: got None"):
        importance_weights(Correction(per_sequence=True), PROXIMAL, SAMPLED, None)


def test_a_masked_token_has_no_gradient() -> None:
    logprobs = CURRENT.clone().requires_grad_()
    masked = Objective(
        LOSSES.get("clipped"), ClipRange(0.2, 0.28), Correction(1.5, 0.5, masks=True), 0.0, "k3"
    )
    terms = masked(columns(logprobs))
    # Weights 0, 1 and 0; p / p_prox of the second token is 0.6, which the clip stops as its advantage is -1.
    torch.testing.assert_close(terms.loss.detach(), column(0, 0.8, 0))
    (gradient,) = torch.autograd.grad(terms.loss.sum(), logprobs)
    assert gradient.tolist() == [0, 0, 0]
    assert terms.bounded is not None
    assert token_means(token_sums(columns(CURRENT), terms))["offpolicy/bounded_fraction"] == 2 / 3


def test_the_decoupled_objective_weighs_without_a_bound() -> None:
    # p / p_prox = 1.2, 0.6, 1: 2.4; min(-0.6, -0.8) = -0.8; 1. Times p_prox / mu = 2, 1, 0.25.
    terms = objective(truncation=math.inf)(columns(CURRENT.clone().requires_grad_()))
    torch.testing.assert_close(terms.loss.detach(), column(-4.8, 0.8, -0.25))


def test_the_entropy_bonus_is_taken_off_the_loss_and_weighted_with_it() -> None:
    entropies = column(0.5, 1.0, 2.0).requires_grad_()
    plain = replace(columns(CURRENT), entropies=entropies)
    terms = objective(entropy=0.1)(plain)
    torch.testing.assert_close(terms.loss.detach(), column(-2.56 - 0.05, 0.8 - 0.1, -0.25 - 0.2))
    (gradient,) = torch.autograd.grad(terms.loss.sum(), entropies)
    torch.testing.assert_close(gradient, column(-0.1, -0.1, -0.1))
    weighted = objective(truncation=1.5, entropy=0.1)(plain).loss.detach()
    torch.testing.assert_close(weighted, column(1.5, 1, 0.25) * column(-2.4 - 0.05, 0.8 - 0.1, -1 - 0.2))
    with pytest.raises(ValueError, match=r"entropy_coefficient is 0.1, and the tokens have no entropies"):
        objective(entropy=0.1)(columns(CURRENT))


def test_without_a_correction_the_ratio_is_against_the_rollout_engine() -> None:
    # p / mu = 2.4, 0.6, 0.25. Clipped to 0.8 .. 1.28: A 2: 2.56; A -1: min(-0.6, -0.8) = -0.8; A 1: 0.25.
    terms = objective()(columns(CURRENT.clone().requires_grad_()))
    torch.testing.assert_close(terms.ratio, column(2.4, 0.6, 0.25))
    torch.testing.assert_close(terms.loss.detach(), column(-2.56, 0.8, -0.25))
    assert terms.clipped.tolist() == [True, True, False]
    assert terms.kl is None


def test_with_a_correction_the_ratio_is_against_the_beginning_of_the_step() -> None:
    # p / p_prox = 1.2, 0.6, 1: 2.4; min(-0.6, -0.8) = -0.8; 1. Times the weights 1.5, 1, 0.25.
    terms = objective(truncation=1.5)(columns(CURRENT.clone().requires_grad_()))
    torch.testing.assert_close(terms.ratio, column(1.2, 0.6, 1.0))
    torch.testing.assert_close(terms.loss.detach(), column(-3.6, 0.8, -0.25))
    assert terms.clipped.tolist() == [False, True, False]


def test_with_one_minibatch_the_ratio_is_exactly_one_and_the_gradient_is_weighted_reinforce() -> None:
    logprobs = CURRENT.clone().requires_grad_()
    terms = objective(truncation=1.5)(columns(logprobs, proximal=None))
    assert terms.ratio.tolist() == [1.0, 1.0, 1.0]
    assert not terms.clipped.any()
    # p / mu = 2.4, 0.6, 0.25, cut at 1.5; gradient -w A = -1.5 x 2, 0.6 x 1, -0.25 x 1.
    (gradient,) = torch.autograd.grad(terms.loss.sum(), logprobs)
    torch.testing.assert_close(gradient, column(-3.0, 0.6, -0.25))


def test_correcting_identical_policies_changes_nothing() -> None:
    logprobs = SAMPLED.clone().requires_grad_()
    plain = objective()(columns(logprobs, proximal=None))
    corrected = objective(truncation=2.0)(columns(logprobs, proximal=None))
    assert torch.equal(plain.loss, corrected.loss)
    (a,) = torch.autograd.grad(plain.loss.sum(), logprobs)
    (b,) = torch.autograd.grad(corrected.loss.sum(), logprobs)
    assert torch.equal(a, b)


def test_the_penalty_is_added_at_each_token_and_weighted_with_it() -> None:
    # exp(-d) = q / p = 0.5, 1, 2, so k3 = 0.5 - 1 + ln 2, 0, 2 - 1 - ln 2.
    k3 = column(math.log(2) - 0.5, 0.0, 1 - math.log(2))
    plain = objective(kl=0.1)(columns(CURRENT.clone().requires_grad_(), reference=REFERENCE))
    torch.testing.assert_close(plain.loss.detach(), column(-2.56, 0.8, -0.25) + 0.1 * k3)
    assert plain.kl is not None
    assert not plain.kl.requires_grad
    torch.testing.assert_close(plain.kl, k3)

    corrected = objective(truncation=1.5, kl=0.1)(
        columns(CURRENT.clone().requires_grad_(), reference=REFERENCE)
    )
    expected = column(1.5, 1.0, 0.25) * (column(-2.4, 0.8, -1.0) + 0.1 * k3)
    torch.testing.assert_close(corrected.loss.detach(), expected)


def test_a_reference_without_a_coefficient_only_adds_metrics() -> None:
    watched = objective(kl=0.0)(columns(CURRENT.clone().requires_grad_(), reference=REFERENCE))
    assert watched.kl is not None
    torch.testing.assert_close(watched.loss.detach(), column(-2.56, 0.8, -0.25))


def test_a_penalty_without_a_reference_is_rejected() -> None:
    with pytest.raises(
        ValueError, match=r"kl.coefficient is 0.1, and the tokens have no reference log-probs"
    ):
        objective(kl=0.1)(columns(CURRENT.clone().requires_grad_()))


@pytest.mark.parametrize("loss", ["clipped", "reinforce", "nll"])
@pytest.mark.parametrize("truncation", [None, 1.5])
def test_gradients_match_finite_differences(loss: str, truncation: float | None) -> None:
    compute = objective(loss, truncation, kl=0.1)
    assert torch.autograd.gradcheck(
        lambda x: compute(columns(x, reference=REFERENCE)).loss, CURRENT.clone().requires_grad_()
    )


def test_metrics() -> None:
    terms = objective(truncation=1.5, kl=0.1)(columns(CURRENT.clone().requires_grad_(), reference=REFERENCE))
    sums = token_sums(columns(CURRENT, reference=REFERENCE), terms, entropy=column(0.3, 0.6, 0.9))
    assert sums.shape == (len(SUMS),)
    assert sums.dtype == torch.float64
    ln2, ln4 = math.log(2), math.log(4)
    assert token_means(sums) == pytest.approx(
        {
            "policy/clip_fraction": 1 / 3,  # the second token
            "policy/kl": (ln2 - 0.5 + 0 + 1 - ln2) / 3,
            "policy/entropy": 0.6,
            "offpolicy/importance_ratio_mean": (2 + 1 + 0.25) / 3,  # p_prox / mu, not cut
            "offpolicy/logprob_gap_mean": (ln2 + 0 + ln4) / 3,
            "offpolicy/bounded_fraction": 1 / 3,  # the first, 2, is cut to 1.5
        }
    )


def test_metrics_of_parts_add_up() -> None:
    whole_columns = columns(CURRENT, reference=REFERENCE)
    whole = token_means(token_sums(whole_columns, objective()(whole_columns), column(0.3, 0.6, 0.9)))
    total = torch.zeros(len(SUMS), dtype=torch.float64)
    for part in (slice(0, 1), slice(1, 3), slice(3, 3)):  # unequal parts, one of them empty
        some = TokenColumns(CURRENT[part], SAMPLED[part], ADVANTAGES[part], PROXIMAL[part], REFERENCE[part])
        total += token_sums(some, objective()(some), column(0.3, 0.6, 0.9)[part])
    assert token_means(total) == pytest.approx(whole)


def test_metrics_that_were_not_computed_are_omitted() -> None:
    terms = objective()(columns(CURRENT, proximal=None))
    means = token_means(token_sums(columns(CURRENT, proximal=None), terms))
    assert sorted(means) == [
        "offpolicy/importance_ratio_mean", "offpolicy/logprob_gap_mean", "policy/clip_fraction",
    ]  # fmt: skip
    assert means["offpolicy/importance_ratio_mean"] == pytest.approx((2.4 + 0.6 + 0.25) / 3)
    assert token_means(torch.zeros(len(SUMS), dtype=torch.float64)) == {}
