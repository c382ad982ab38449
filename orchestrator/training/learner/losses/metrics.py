"""What the objective did to a batch, as sums.

Micro-batches add the sums up, ranks all-reduce them, and one division at the end gives the metrics.
"""

from __future__ import annotations

import torch
from torch import Tensor

from orchestrator.training.learner.losses.objective import TokenColumns, TokenTerms

_MEANS = (
    ("policy/clip_fraction", "tokens"),
    ("policy/kl", "kl_tokens"),
    ("policy/entropy", "entropy_tokens"),
    ("offpolicy/importance_ratio_mean", "tokens"),
    ("offpolicy/logprob_gap_mean", "tokens"),
    ("offpolicy/bounded_fraction", "bounded_tokens"),
)
"""Each metric's sum, and which count divides it."""

SUMS: tuple[str, ...] = (
    *(name for name, _ in _MEANS),
    "tokens",
    "kl_tokens",
    "entropy_tokens",
    "bounded_tokens",
)
"""What the entries of a vector of sums are, in order."""


def token_sums(columns: TokenColumns, terms: TokenTerms, entropy: Tensor | None = None) -> Tensor:
    """The sums over T tokens that `token_means` needs: float64 [len(SUMS)], detached, on the columns'
    device; add and all-reduce at will.

    `entropy` [T] is the entropy of the learner's distribution at each token, in nats; None where it
    was not computed.
    """
    log_ratio = (columns.learner_logprobs - columns.sampled_logprobs).to(torch.float64)
    tokens = log_ratio.numel()
    values: dict[str, Tensor | int] = {
        "policy/clip_fraction": terms.clipped.sum(),
        "policy/kl": 0 if terms.kl is None else terms.kl.sum(dtype=torch.float64),
        "policy/entropy": 0 if entropy is None else entropy.detach().sum(dtype=torch.float64),
        "offpolicy/importance_ratio_mean": log_ratio.exp().sum(),
        "offpolicy/logprob_gap_mean": log_ratio.abs().sum(),
        "offpolicy/bounded_fraction": 0 if terms.bounded is None else terms.bounded.sum(),
        "tokens": tokens,
        "kl_tokens": 0 if terms.kl is None else tokens,
        "entropy_tokens": 0 if entropy is None else tokens,
        "bounded_tokens": 0 if terms.bounded is None else tokens,
    }
    return torch.stack(
        [torch.as_tensor(values[name], dtype=torch.float64, device=log_ratio.device) for name in SUMS]
    )


def token_means(sums: Tensor) -> dict[str, float]:
    """Metrics by name from the total of all `token_sums`, [len(SUMS)].

    A metric that no token was counted for is left out.

    - `policy/clip_fraction`: share of tokens whose gradient the clip took away, or with `cispo`
      changed in size.
    - `policy/kl`: mean of the configured KL estimator, before its coefficient, in nats a token.
    - `policy/entropy`: mean entropy of the learner's distribution, in nats.
    - `offpolicy/importance_ratio_mean`: mean of learner probability / rollout's, not truncated; 1 on-policy.
    - `offpolicy/logprob_gap_mean`: mean |learner log-prob - rollout log-prob|, in nats; 0 on-policy.
    - `offpolicy/bounded_fraction`: share of tokens whose importance weight was cut, or set to 0.
    """
    totals = dict(zip(SUMS, sums.tolist(), strict=True))
    return {name: totals[name] / totals[count] for name, count in _MEANS if totals[count] > 0}
