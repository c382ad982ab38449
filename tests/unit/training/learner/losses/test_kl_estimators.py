"""KL estimators: hand-computed values, and the gradients that they estimate, by
summing over a whole vocabulary.
"""

from __future__ import annotations

import pytest
import torch

from orchestrator.training.learner.losses.kl import KL_ESTIMATORS, k1, k2, k3


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# A vocabulary of three. Learner p = softmax(LOGITS) = 0.5 0.25 0.25, reference q = 0.25 0.25 0.5.
LOGITS = column(0.5, 0.25, 0.25).log()
REFERENCE = column(0.25, 0.25, 0.5).log()
LN2 = 0.6931471805599453


def test_estimator_values() -> None:
    # d = log p - log q = ln 2, 0, -ln 2.
    # k1 = d; k2 = d^2 / 2 = 0.2402265070 where d = +-ln 2;
    # k3 = exp(-d) - 1 + d = 0.5 - 1 + ln 2 = 0.1931471806, 0, 2 - 1 - ln 2 = 0.3068528194.
    torch.testing.assert_close(k1(LOGITS, REFERENCE), column(LN2, 0, -LN2))
    torch.testing.assert_close(k2(LOGITS, REFERENCE), column(0.2402265069591007, 0, 0.2402265069591007))
    torch.testing.assert_close(k3(LOGITS, REFERENCE), column(0.1931471805599453, 0, 0.3068528194400547))


def test_token_gradients() -> None:
    # d/d(log p) of the penalty at a token: k1 and k2 d; k3 1 - exp(-d) = 1 - 0.5, 0, 1 - 2.
    for name, expected in {"k1": (LN2, 0, -LN2), "k2": (LN2, 0, -LN2), "k3": (0.5, 0, -1)}.items():
        logprobs = LOGITS.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(KL_ESTIMATORS[name](logprobs, REFERENCE).sum(), logprobs)
        torch.testing.assert_close(gradient, column(*expected))


def expectation(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """E_p[estimator] and the expected gradient with respect to the logits, exactly: each token has the weight
    of its probability, as if sampled.
    """
    logits = LOGITS.clone().requires_grad_()
    logprobs = logits.log_softmax(0)
    mean = (logprobs.detach().exp() * KL_ESTIMATORS[name](logprobs, REFERENCE)).sum()
    (gradient,) = torch.autograd.grad(mean, logits)
    return mean.detach(), gradient


def divergence(forward: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(p || q), or KL(q || p) if `forward`, and its gradient with respect to the logits of p."""
    logits = LOGITS.clone().requires_grad_()
    p, q = logits.log_softmax(0), REFERENCE
    value = (q.exp() * (q - p)).sum() if forward else (p.exp() * (p - q)).sum()
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_k1_and_k3_are_unbiased_for_the_value(name: str) -> None:
    # KL(p || q) = 0.5 ln 2 + 0 - 0.25 ln 2 = 0.25 ln 2 = 0.1732867951.
    assert float(expectation(name)[0]) == pytest.approx(0.25 * LN2)
    assert float(divergence(forward=False)[0]) == pytest.approx(0.25 * LN2)


def test_k2_is_biased_for_the_value_by_a_third_order() -> None:
    # E = 0.75 (ln 2)^2 / 2 = 0.1801698802; the bias is E[d^3] / 6 - E[d^4] / 24 + ...
    # = 0.25 (ln 2)^3 / 6 - 0.75 (ln 2)^4 / 24 + ... = 0.01388 - 0.00721 + ...
    assert float(expectation("k2")[0]) == pytest.approx(0.1801698802193255)
    assert float(expectation("k2")[0]) - 0.25 * LN2 == pytest.approx(0.0068831, abs=1e-7)


@pytest.mark.parametrize("name", ["k1", "k2"])
def test_k1_and_k2_have_the_gradient_of_the_reverse_kl(name: str) -> None:
    torch.testing.assert_close(expectation(name)[1], divergence(forward=False)[1])


def test_k3_has_the_gradient_of_the_forward_kl() -> None:
    # grad by logits of KL(q || p) = p - q = 0.25, 0, -0.25.
    torch.testing.assert_close(expectation("k3")[1], column(0.25, 0, -0.25))
    torch.testing.assert_close(expectation("k3")[1], divergence(forward=True)[1])
    assert not torch.allclose(expectation("k3")[1], divergence(forward=False)[1])


def test_the_plain_gradient_of_k1_would_not_be_a_penalty() -> None:
    """Why k1's gradient is replaced: the autograd gradient of log p - log q has expectation zero."""
    logits = LOGITS.clone().requires_grad_()
    logprobs = logits.log_softmax(0)
    naive = (logprobs.detach().exp() * (logprobs - REFERENCE)).sum()
    (gradient,) = torch.autograd.grad(naive, logits)
    torch.testing.assert_close(gradient, column(0, 0, 0))


@pytest.mark.parametrize("name", ["k2", "k3"])
def test_gradients_match_finite_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs = -torch.rand(32, generator=generator, dtype=torch.float64)
    reference = logprobs + torch.randn(32, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: KL_ESTIMATORS[name](x, reference), logprobs.requires_grad_())


def test_gradient_of_k1_is_the_finite_difference_of_k2() -> None:
    logprobs = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(k1(logprobs, REFERENCE).sum(), logprobs)
    step = 1e-6
    difference = (k2(LOGITS + step, REFERENCE) - k2(LOGITS - step, REFERENCE)) / (2 * step)
    torch.testing.assert_close(gradient, difference, rtol=1e-8, atol=1e-9)


def test_k3_keeps_its_digits_near_the_reference() -> None:
    # d = 1e-3 in float32: exp(-d) - 1 + d = d^2 / 2 - d^3 / 6 = 4.998334e-7. exp(x) - 1 alone errs by 6e-8.
    logprobs = torch.tensor([1e-3])
    assert float(k3(logprobs, torch.zeros(1))) == pytest.approx(4.998334e-7, rel=3e-4)


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_zero_at_the_reference_and_no_gradient_into_it(name: str) -> None:
    logprobs, reference = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    penalty = KL_ESTIMATORS[name](logprobs, reference)
    penalty.sum().backward()
    assert penalty.tolist() == [0, 0, 0]
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [0, 0, 0]
    assert reference.grad is None
