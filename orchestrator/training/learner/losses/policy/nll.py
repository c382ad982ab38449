"""Negative log-likelihood: imitation, for a cold start."""

from __future__ import annotations

import torch

from orchestrator.training.learner.losses.policy import LOSSES, ClipRange, PolicyColumns, PolicyTerms


@LOSSES.register("nll")
def nll(columns: PolicyColumns, clip: ClipRange) -> PolicyTerms:
    """-log p, whatever the advantage.

    Assumes that every token is to be imitated; that is why a config pairs it with the advantage `constant`
    and is refused otherwise. Tokens of worked solutions were sampled by nobody, so no ratio exists: it is
    reported as 1. `clip` and `old_logprobs` are ignored.
    """
    del clip
    ratio = torch.ones_like(columns.logprobs.detach())
    return PolicyTerms(loss=-columns.logprobs, ratio=ratio, clipped=torch.zeros_like(ratio, dtype=torch.bool))
