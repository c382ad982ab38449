"""GRPO as published: how many standard deviations a rollout is above its group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.training.advantages import ADVANTAGES, EstimatorFacts
from orchestrator.training.advantages._groups import centred_on_group, check_rewards

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-6


@ADVANTAGES.register("grpo", EstimatorFacts(group_relative=True))
def grpo(rewards: Tensor) -> Tensor:
    """A[p, i] = (r[p, i] - mean(r[p])) / (std(r[p]) + 1e-6). [P, G] gives [P, G], float64. Raises
    ValueError if G < 2.

    The paper writes `std` and does not say which; this is the *sample* standard deviation (divisor G - 1),
    what TRL, verl and OpenRLHF compute, so that their learning rates carry over. (The population's would
    only scale all advantages by sqrt(G / (G - 1)).) EPSILON is verl's: small beside the spread of any real
    reward (a single success among 64 has std 0.125), and large beside the rounding of rewards that should
    be equal, which must not be blown up to advantages of size 1.

    Assumes that prompts differ in how spread out their rewards are and that this should not matter. With
    0/1 rewards it raises the weight of prompts that are almost always or almost never solved (Dr. GRPO
    drops the division for that reason). Degenerate: a group of equal rewards gives exactly 0.

        rewards 1 0 0 0:  mean 0.25, std sqrt(0.75 / 3) = 0.5  ->  1.5 -0.5 -0.5 -0.5

    Shao et al. 2024 (DeepSeekMath), https://arxiv.org/abs/2402.03300, section 4.1.2.
    """
    check_rewards(rewards, least_group_size=2)
    return centred_on_group(rewards) / (rewards.std(dim=1, keepdim=True, correction=1) + EPSILON)
