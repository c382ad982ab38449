"""GRPO as published: the reward, normalised by the mean and the standard deviation of its group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.training.advantages import ADVANTAGES, EstimatorFacts
from orchestrator.training.advantages._groups import centred_on_group, check_rewards

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-6


@ADVANTAGES.register("grpo", EstimatorFacts(group_relative=True))
def grpo(rewards: Tensor) -> Tensor:
    """A[p, i] = (r[p, i] - mean(r[p])) / (std(r[p]) + 1e-6). [P, G] gives [P, G],
    float64. Raises ValueError if G < 2.

    The paper does not define `std`. This is the *sample* standard deviation (divisor G - 1), as in TRL, verl
    and OpenRLHF, so that their learning rates carry over. (The population standard deviation would scale all
    advantages by sqrt(G / (G - 1)).) EPSILON is verl's value: small compared with the spread of any real
    reward (a single success among 64 has std 0.125), and large compared with the rounding error of rewards
    that should be equal, which must not be amplified to advantages of size 1.

    Assumes that differences in spread between prompts should be normalised away. With 0/1 rewards, this gives
    more weight to prompts that are almost always or almost never solved (Dr. GRPO omits the division for that
    reason). Degenerate case: a group of equal rewards gives exactly 0.

        rewards 1 0 0 0:  mean 0.25, std sqrt(0.75 / 3) = 0.5  ->  1.5 -0.5 -0.5 -0.5

    Shao et al. 2024 (DeepSeekMath), https://arxiv.org/abs/2402.03300, section 4.1.2.
    """
    check_rewards(rewards, least_group_size=2)
    return centred_on_group(rewards) / (rewards.std(dim=1, keepdim=True, correction=1) + EPSILON)
