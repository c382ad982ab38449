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
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token for each row: (tokens [n] int64, log-probs [n] float32), from `logits` [n, V]
    and `draws` [n].

    The log-prob is under softmax(logits / temperature), before any truncation; at temperature 0 (greedy,
    where the sampled distribution is a point) under softmax(logits). The choice inverts the cumulative
    distribution at the row's draw. With `penalised` [n, V] (see `Penalties`) the token is chosen from these
    logits instead, and the log-prob is still that under `logits`, which the learner computes.
    """
    logprobs = _tempered(logits, sampling.temperature)
    decisive = logprobs if penalised is None else _tempered(penalised, sampling.temperature)
    if sampling.temperature == 0:
        tokens = decisive.argmax(dim=-1)
    else:
        probabilities = decisive.exp()
        if sampling.min_p > 0 or sampling.top_k > 0:
            probabilities = _truncate(probabilities, sampling.min_p, sampling.top_k)
        if sampling.top_p < 1:
            tokens = _invert_nucleus(probabilities, draws, sampling.top_p)
        else:
            tokens = _invert(probabilities, draws)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def _tempered(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """log softmax(logits / temperature); at temperature 0, log softmax(logits)."""
    scaled = logits.float()
    if temperature not in (0.0, 1.0):
        scaled = scaled / temperature
    return torch.log_softmax(scaled, dim=-1)


def _truncate(probabilities: torch.Tensor, min_p: float, top_k: int) -> torch.Tensor:
    """The probabilities [n, V] of the tokens that are at least `min_p` times as probable as the most probable
    one (Nguyen et al. 2024) and among the `top_k` most probable (0: all), scaled to a sum of 1. Tokens as
    probable as the last of the k are kept too.
    """
    floor = probabilities.amax(dim=-1, keepdim=True) * min_p
    if 0 < top_k < probabilities.shape[-1]:
        floor = torch.maximum(floor, probabilities.topk(top_k, dim=-1).values[:, -1:])
    kept = probabilities.masked_fill(probabilities < floor, 0.0)
    return kept / kept.sum(dim=-1, keepdim=True)


def _invert(probabilities: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative probability exceeds `draws` of the total, [n]; never one
    of probability 0.
    """
    cumulative = probabilities.cumsum(dim=-1)
    thresholds = draws[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, thresholds, right=True)[:, 0]
    # draw * total can round up to the total itself, which lies behind every index; the last one that adds
    # anything is right.
    last = (cumulative < cumulative[:, -1:]).sum(dim=-1)
    return torch.minimum(chosen, last)


def _invert_nucleus(probabilities: torch.Tensor, draws: torch.Tensor, top_p: float) -> torch.Tensor:
    """As `_invert`, over the fewest most probable tokens whose probabilities reach `top_p` together
    (Holtzman et al. 2020).
    """
    ordered, order = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    chosen = _invert(ordered.masked_fill(before >= top_p, 0.0), draws)
    return order.gather(1, chosen[:, None])[:, 0]
