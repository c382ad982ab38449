"""Each policy loss against hand-computed numbers, and its gradient against finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from orchestrator.training.learner.losses import LOSSES, ClipRange, PolicyColumns, PolicyTerms

CLIP = ClipRange(low=0.2, high=0.28)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def evaluate(
    name: str, ratios: list[float], advantages: list[float], clip: ClipRange = CLIP
) -> tuple[PolicyTerms, torch.Tensor]:
    """The terms for tokens with these ratios, all with old probability 1/4,
    and d(sum of losses)/d(logprobs).
    """
    old = torch.full((len(ratios),), 0.25, dtype=torch.float64).log()
    logprobs = (old + column(*ratios).log()).requires_grad_()
    terms = LOSSES.get(name)(PolicyColumns(logprobs, old, column(*advantages)), clip)
    (gradient,) = torch.autograd.grad(terms.loss.sum(), logprobs)
    return terms, gradient


def assert_columns(got: torch.Tensor, *expected: float) -> None:
    torch.testing.assert_close(got, column(*expected), rtol=0, atol=1e-12)


def test_clipped_takes_the_minimum_of_two_surrogates() -> None:
    # r A against clip(r, 0.8, 1.28) A, the smaller one, negated:
    #   r 1.5, A  2:   3.0 or  2.56 ->  2.56, clipped      r 0.5, A  2:   1.0 or  1.6 ->  1.0
    #   r 1.5, A -2:  -3.0 or -2.56 -> -3.0                r 0.5, A -2:  -1.0 or -1.6 -> -1.6, clipped
    #   r 1.1, A  2:   2.2 or  2.2  ->  2.2                r 1.5, A  0:   0
    ratios, advantages = [1.5, 0.5, 1.5, 0.5, 1.1, 1.5], [2.0, 2.0, -2.0, -2.0, 2.0, 0.0]
    terms, gradient = evaluate("clipped", ratios, advantages)
    assert_columns(terms.loss.detach(), -2.56, -1.0, 3.0, 1.6, -2.2, 0.0)
    assert terms.clipped.tolist() == [True, False, False, True, False, False]
    assert_columns(terms.ratio, *ratios)
    # d(-r A)/d(log p) = -r A where not clipped, 0 where clipped.
    assert_columns(gradient, 0.0, -1.0, 3.0, 0.0, -2.2, 0.0)


def test_clipped_uses_each_bound_on_its_own_side() -> None:
    # 1.25 lies beyond 1 + low = 1.2 and inside 1 + high = 1.28; 0.75 lies inside 1 - high and beyond 1 - low.
    terms, _ = evaluate("clipped", [1.25, 1.29, 0.75, 0.81], [1.0, 1.0, -1.0, -1.0])
    assert terms.clipped.tolist() == [False, True, True, False]


def test_a_lower_clip_of_1_or_more_disables_the_bound() -> None:
    # DeepSeek-R1's epsilon of 10: 1 - 10 is below every ratio, and 11 bounds it from above.
    terms, gradient = evaluate("clipped", [0.001, 12.0], [-1.0, 1.0], ClipRange(10, 10))
    assert_columns(terms.loss.detach(), 0.001, -11.0)
    assert_columns(gradient, 0.001, 0.0)
    assert terms.clipped.tolist() == [False, True]


def test_the_dual_clip_bounds_the_loss_of_a_negative_advantage() -> None:
    # Ye et al. 2020, eq. 5: max(min(r A, clip(r) A), c A) for A < 0, here c = 3, negated.
    #   r 148, A -1: 148 -> 3    r 2.5, A -1: 2.5    r 0.5, A -1: 0.8 (lower clip)    r 148, A 1: -1.28
    clip = ClipRange(0.2, 0.28, dual=3.0)
    terms, gradient = evaluate("clipped", [148.0, 2.5, 0.5, 148.0], [-1.0, -1.0, -1.0, 1.0], clip)
    assert_columns(terms.loss.detach(), 3.0, 2.5, 0.8, -1.28)
    assert_columns(gradient, 0.0, 2.5, 0.0, 0.0)
    assert terms.clipped.tolist() == [True, False, True, True]


def test_a_huge_log_ratio_has_a_finite_loss_and_an_infinite_one_is_an_error() -> None:
    logprobs = torch.tensor([-1.0, -1.0], requires_grad=True)
    old = torch.tensor([-101.0, -math.inf])
    terms = LOSSES.get("clipped")(PolicyColumns(logprobs, old, torch.tensor([-1.0, -1.0])), CLIP)
    first, second = terms.loss.tolist()
    assert first == pytest.approx(math.exp(20), rel=1e-5)
    assert math.isinf(second)
    assert terms.clipped.tolist() == [True, True]
    bounded = ClipRange(0.2, 0.28, dual=3.0)
    (dual, _) = LOSSES.get("clipped")(PolicyColumns(logprobs, old, -torch.ones(2)), bounded).loss.tolist()
    assert dual == 3.0


def test_clipped_is_reinforce_on_policy() -> None:
    # At r = 1 both branches of the minimum are equal: the gradient must be -A once, not twice and not half.
    terms, gradient = evaluate("clipped", [1.0, 1.0], [2.0, -3.0])
    assert_columns(terms.loss.detach(), -2.0, 3.0)
    assert_columns(gradient, -2.0, 3.0)
    assert not terms.clipped.any()


def test_cispo_clips_the_weight_and_keeps_every_gradient() -> None:
    # w = clip(r, 0.8, 1.28); p = r / 4. Loss -w A log p, gradient -w A:
    #   r 1.5: w 1.28, cut    r 0.5: w 0.8, cut    r 1.1: w 1.1    A 0: loss 0, and not counted as clipped
    ratios, advantages = [1.5, 0.5, 1.5, 1.1, 1.5], [2.0, 2.0, -2.0, 2.0, 0.0]
    terms, gradient = evaluate("cispo", ratios, advantages)
    log_375, log_125, log_275 = -0.9808292530117262, -2.0794415416798357, -1.2909841813155656
    assert_columns(terms.loss.detach(), -2.56 * log_375, -1.6 * log_125, 2.56 * log_375, -2.2 * log_275, 0.0)
    assert_columns(gradient, -2.56, -1.6, 2.56, -2.2, 0.0)
    assert_columns(terms.ratio, *ratios)
    assert terms.clipped.tolist() == [True, True, True, False, False]


def test_a_lower_clip_of_1_sets_no_lower_bound_on_the_weights_of_cispo() -> None:
    terms, gradient = evaluate("cispo", [0.01, 9.0], [1.0, 1.0], ClipRange(1, 4))
    assert_columns(gradient, -0.01, -5.0)
    assert terms.clipped.tolist() == [False, True]


def test_the_gradient_of_cispo_is_that_of_the_paper() -> None:
    # Equation 4: sg(clip(r)) A log p. The weights are constants, so the differences are taken of
    # sum(w A log p) with the weights of the point itself.
    generator = torch.Generator().manual_seed(0)
    logprobs = -torch.rand(64, generator=generator, dtype=torch.float64) * 3 - 0.1
    old = logprobs + 2 * torch.rand(64, generator=generator, dtype=torch.float64) - 1
    advantages = torch.randn(64, generator=generator, dtype=torch.float64)
    weights = [min(max(math.exp(float(p - q)), 0.8), 1.28) for p, q in zip(logprobs, old, strict=True)]

    def objective(x: torch.Tensor) -> float:
        terms = zip(weights, advantages.tolist(), x.tolist(), strict=True)
        return math.fsum(weight * advantage * value for weight, advantage, value in terms)

    step, numeric = 1e-4, torch.empty(64, dtype=torch.float64)
    for t in range(64):
        ahead, behind = logprobs.clone(), logprobs.clone()
        ahead[t] += step
        behind[t] -= step
        numeric[t] = -(objective(ahead) - objective(behind)) / (2 * step)
    x = logprobs.clone().requires_grad_()
    terms = LOSSES.get("cispo")(PolicyColumns(x, old, advantages), CLIP)
    (gradient,) = torch.autograd.grad(terms.loss.sum(), x)
    torch.testing.assert_close(gradient, numeric, rtol=0, atol=1e-9)
    assert 10 < int(terms.clipped.sum()) < 54


def test_cispo_is_finite_at_a_huge_ratio_and_infinite_at_probability_0() -> None:
    logprobs = torch.tensor([-1.0, -1.0], requires_grad=True)
    old = torch.tensor([-101.0, -math.inf])
    terms = LOSSES.get("cispo")(PolicyColumns(logprobs, old, -torch.ones(2)), CLIP)
    huge, impossible = terms.loss.tolist()
    assert huge == pytest.approx(-1.28)
    assert math.isinf(impossible)


def test_reinforce_weighs_the_log_probability() -> None:
    # p = r / 4: log 0.375 = -0.980829253, log 0.125 = -2.079441542. Loss -A log p, gradient -A.
    terms, gradient = evaluate("reinforce", [1.5, 0.5], [2.0, -3.0])
    assert_columns(terms.loss.detach(), 2 * 0.9808292530117262, -3 * 2.0794415416798357)
    assert_columns(gradient, -2.0, 3.0)
    assert_columns(terms.ratio, 1.5, 0.5)
    assert not terms.clipped.any()


def test_nll_ignores_advantages_and_takes_no_ratio() -> None:
    terms, gradient = evaluate("nll", [1.5, 0.5], [2.0, -3.0])
    assert_columns(terms.loss.detach(), 0.9808292530117262, 2.0794415416798357)
    assert_columns(gradient, -1.0, -1.0)
    assert_columns(terms.ratio, 1.0, 1.0)
    assert not terms.clipped.any()


@pytest.mark.parametrize("name", ["clipped", "reinforce", "nll"])
def test_gradients_match_finite_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs = -torch.rand(64, generator=generator, dtype=torch.float64) * 3 - 0.1
    old = logprobs + 0.8 * torch.rand(64, generator=generator, dtype=torch.float64) - 0.4
    advantages = torch.randn(64, generator=generator, dtype=torch.float64)
    ratio = (logprobs - old).exp()
    assert min((ratio - bound).abs().min() for bound in (0.8, 1.28)) > 1e-4  # no token at a kink

    def losses(x: torch.Tensor) -> torch.Tensor:
        return LOSSES.get(name)(PolicyColumns(x, old, advantages), CLIP).loss

    assert torch.autograd.gradcheck(losses, logprobs.requires_grad_())


@pytest.mark.parametrize("name", ["cispo", "clipped", "reinforce", "nll"])
def test_a_token_depends_on_no_other_and_only_the_loss_has_a_gradient(name: str) -> None:
    ratios, advantages = [1.5, 0.5, 1.1], [2.0, -2.0, 1.0]
    together, _ = evaluate(name, ratios, advantages)
    for index in range(3):
        alone, _ = evaluate(name, ratios[index : index + 1], advantages[index : index + 1])
        assert_columns(alone.loss.detach(), float(together.loss.detach()[index]))
    assert together.loss.requires_grad
    assert not together.ratio.requires_grad
    assert together.clipped.dtype == torch.bool


@pytest.mark.parametrize("name", ["cispo", "clipped", "reinforce", "nll"])
def test_no_tokens_give_no_terms(name: str) -> None:
    terms, gradient = evaluate(name, [], [])
    assert terms.loss.shape == terms.ratio.shape == terms.clipped.shape == gradient.shape == (0,)


def test_all_losses_are_listed() -> None:
    assert LOSSES.names() == ["cispo", "clipped", "gmpo", "gspo", "nll", "reinforce"]


def test_float32_stays_float32() -> None:
    logprobs = torch.tensor([math.log(0.5)], requires_grad=True)
    terms = LOSSES.get("clipped")(PolicyColumns(logprobs, logprobs.detach(), torch.ones(1)), CLIP)
    assert terms.loss.dtype == terms.ratio.dtype == torch.float32
    assert float(terms.ratio) == 1.0
