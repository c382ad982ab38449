"""KL penalties against the reference model, one number a token, from the sampled tokens' log-probs alone.

With d = log p - log q (p the learner with gradient, q the reference), tokens x sampled from p, after
Schulman 2020, http://joschu.net/blog/kl-approx.html. A good estimate of the *value* of KL(p || q) does not
have a good *gradient*, because the tokens themselves were drawn from p. Below, "gradient" is the
expectation over tokens of what autograd returns:

| estimator | value            | value estimates | gradient                     | gradient estimates   |
| --------- | ---------------- | --------------- | ---------------------------- | -------------------- |
| k1        | d                | KL(p || q)      | E[d grad(log p)], see below  | grad KL(p || q)      |
| k2        | d^2 / 2          | KL(p || q)*     | E[d grad(log p)]             | grad KL(p || q)      |
| k3        | exp(-d) - 1 + d  | KL(p || q)      | E[(1 - exp(-d)) grad(log p)] | grad KL(q || p)      |

The estimates of the value are unbiased but for *, whose bias is of third order in d. k3's gradient belongs
to the other, forward KL.

k1 as written has the gradient grad(log p), whose expectation is 0: a penalty that does nothing but add
noise. So k1 here has k1's value and the score-function gradient d grad(log p), the one that "KL in the
reward" (PPO, RLOO, REINFORCE++) has at the token itself. k3 is differentiated as GRPO published it; near p
= q, where d is small, all three gradients agree to first order.

A value is that of one token given its prefix: the penalty leaves out how a token changes the KL of those
after it. All of the above is for tokens sampled from p; others need the weights of `importance`. Nothing is
clamped: a clamp would take the gradient away where the divergence is largest, and an overflow becomes a
loss that is not finite, which the learner refuses by name.

Gradients: Tang and Munos 2025, https://arxiv.org/abs/2506.09477; Liu et al. 2025, https://arxiv.org/abs/2510.01555.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """d, with the gradient d grad(log p). [T] and [T] give [T]; may be negative at a token."""
    difference = (logprobs - reference_logprobs).detach()
    zero_with_gradient = logprobs - logprobs.detach()
    return difference + difference * zero_with_gradient


def k2(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """d^2 / 2, with its own gradient d grad(log p). [T] and [T] give [T]; never negative."""
    return 0.5 * (logprobs - reference_logprobs.detach()).square()


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """exp(-d) - 1 + d, with its own gradient (1 - exp(-d)) grad(log p). [T], [T] give [T]; never negative."""
    gap = reference_logprobs.detach() - logprobs
    return torch.expm1(gap) - gap  # expm1: exp(gap) - 1 loses all digits near p = q


KL_ESTIMATORS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""By the name that `kl.estimator` uses."""
