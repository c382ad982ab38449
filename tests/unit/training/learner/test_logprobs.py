"""Log-probs of chosen tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orchestrator.training.learner import logprobs
from orchestrator.training.learner.logprobs import selective_log_softmax


def _logits(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(6, 11, generator=generator)).to(dtype).requires_grad_()
    return logits, torch.randint(0, 11, (6,), generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_elements", [1, 25, 1 << 22])
def test_values_and_gradients_are_those_of_log_softmax(
    temperature: float, chunk_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "_CHUNK_ELEMENTS", chunk_elements)
    logits, targets = _logits()
    upstream = torch.linspace(-1, 1, 6)

    full = torch.log_softmax(logits / temperature, dim=-1)
    expected = full.gather(1, targets[:, None]).squeeze(1)
    (expected_gradient,) = torch.autograd.grad(expected, logits, upstream, retain_graph=True)
    got, entropies = selective_log_softmax(logits, targets, temperature)
    (gradient,) = torch.autograd.grad(got, logits, upstream, retain_graph=True)

    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)
    expected_entropies = -(full.exp() * full).sum(dim=-1)
    torch.testing.assert_close(entropies, expected_entropies, rtol=1e-5, atol=1e-5)

    # The gradient of the entropies alone, and of both outputs together.
    both = torch.dot(expected, upstream) + torch.dot(expected_entropies, upstream.square())
    (of_entropies,) = torch.autograd.grad(expected_entropies, logits, upstream.square(), retain_graph=True)
    (of_both,) = torch.autograd.grad(both, logits)
    (alone,) = torch.autograd.grad(entropies, logits, upstream.square(), retain_graph=True)
    torch.testing.assert_close(alone, of_entropies, rtol=1e-5, atol=1e-6)
    (together,) = torch.autograd.grad((got, entropies), logits, (upstream, upstream.square()))
    torch.testing.assert_close(together, of_both, rtol=1e-5, atol=1e-6)


def test_half_precision_logits_are_scored_in_float32_and_get_a_gradient_of_their_own_type() -> None:
    logits, targets = _logits(torch.bfloat16)
    got, _ = selective_log_softmax(logits, targets, 1.0)
    got.sum().backward()
    assert got.dtype == torch.float32
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_large_logits_do_not_overflow() -> None:
    got, entropies = selective_log_softmax(torch.tensor([[1e4, 0.0]]), torch.tensor([1]), 1.0)
    assert got.tolist() == [-1e4]
    assert entropies.tolist() == [0.0]


def test_no_tokens_give_no_log_probs_and_a_zero_gradient() -> None:
    logits = torch.zeros(0, 4, requires_grad=True)
    got, _ = selective_log_softmax(logits, torch.zeros(0, dtype=torch.int64), 1.0)
    got.sum().backward()
    assert got.shape == (0,)
    assert logits.grad is not None
