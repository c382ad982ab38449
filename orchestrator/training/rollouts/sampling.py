"""From logits to tokens: temperature, truncation (min-p, top-k, top-p), and the log-prob of what was chosen.
`penalties.py` changes the logits beforehand, where a request asks for it.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from orchestrator.training.records import SamplingParams


def uniform_draws(seed: int, group_id: int, members: range, tokens: int) -> torch.Tensor:
    """The random numbers that decide the tokens of some members of a group, float32 in [0, 1), of shape
    [members, tokens].

    A number depends only on the seed, the group's id, the member's index in the group and the token's
    position. It does not change with the number of workers, the other groups or `tokens`.
    """
    draws = np.empty((len(members), tokens), dtype=np.float32)
    for row, member in zip(draws, members, strict=True):
        key = hashlib.blake2b(f"{seed}/{group_id}/{member}".encode(), digest_size=16).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key)))
        generator.random(out=row, dtype=np.float32)
    return torch.from_numpy(draws)


def sample(
    logits: torch.Tensor,
    draws: torch.Tensor,
    sampling: SamplingParams,
    penalised: torch.Tensor | None = None,
    forced: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token for each row: (tokens [n] int64, log-probs [n] float32), from `logits` [n, V]
    and `draws` [n].

    The log-prob is under softmax(logits / temperature), before any truncation; at temperature 0 (greedy,
    where the sampled distribution is a point) under softmax(logits). The choice inverts the cumulative
    distribution at the row's draw. With `penalised` [n, V] (see `Penalties`) the token is chosen from these
    logits instead, and the log-prob is still that under `logits`, which the learner computes. Where `forced`
    [n] is 0 or more, that token is taken instead of a sampled one (see `ThinkingBudget`).
    """
    scaled = _scaled(logits, sampling.temperature)
    decisive = scaled if penalised is None else _scaled(penalised, sampling.temperature)
    largest = decisive.amax(dim=-1, keepdim=True)
    weights = (decisive - largest).exp_()  # proportional to the probabilities
    tokens = decisive.argmax(dim=-1) if sampling.temperature == 0 else _choose(weights, draws, sampling)
    if forced is not None:
        forced = forced.to(tokens.device)
        tokens = torch.where(forced >= 0, forced, tokens)
    chosen = scaled.gather(1, tokens[:, None])[:, 0]
    if penalised is None:
        return tokens, chosen - (largest[:, 0] + weights.sum(dim=-1).log())
    return tokens, chosen - torch.logsumexp(scaled, dim=-1)


def _scaled(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """The logits in float32, divided by the temperature unless that is 0."""
    scaled = logits.float()
    return scaled if temperature in (0.0, 1.0) else scaled / temperature


def _choose(weights: torch.Tensor, draws: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    """Tokens [n] drawn from `weights` [n, V], which need not sum to 1, after truncation."""
    if sampling.min_p > 0 or sampling.top_k > 0:
        weights = _truncate(weights, sampling.min_p, sampling.top_k)
    if sampling.top_p < 1:
        return _invert_nucleus(weights / weights.sum(dim=-1, keepdim=True), draws, sampling.top_p)
    return _invert(weights, draws)


def _truncate(weights: torch.Tensor, min_p: float, top_k: int) -> torch.Tensor:
    """`weights` [n, V], with 0 for tokens that are less than `min_p` times as probable as the most probable
    one (Nguyen et al. 2024) or not among the `top_k` most probable (0: all are). Tokens as probable as the
    last of the k are kept too.
    """
    floor = weights.amax(dim=-1, keepdim=True) * min_p
    if 0 < top_k < weights.shape[-1]:
        floor = torch.maximum(floor, weights.topk(top_k, dim=-1).values[:, -1:])
    return weights.masked_fill(weights < floor, 0.0)


def _invert(weights: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative weight exceeds `draws` of the total, [n]; never one of weight 0."""
    cumulative = weights.cumsum(dim=-1)
    totals = cumulative[:, -1:].contiguous()
    chosen = torch.searchsorted(cumulative, draws[:, None] * totals, right=True)
    # draw * total can round up to the total itself, which lies behind every index; the last one that adds
    # anything is right.
    last = torch.searchsorted(cumulative, totals)
    return torch.minimum(chosen, last)[:, 0]


def _invert_nucleus(probabilities: torch.Tensor, draws: torch.Tensor, top_p: float) -> torch.Tensor:
    """As `_invert`, over the fewest most probable tokens whose probabilities reach `top_p` together
    (Holtzman et al. 2020).
    """
    ordered, order = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    chosen = _invert(ordered.masked_fill(before >= top_p, 0.0), draws)
    return order.gather(1, chosen[:, None])[:, 0]
