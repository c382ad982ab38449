"""Negative log-likelihood: imitation, for a cold start."""

from __future__ import annotations

from orchestrator.training.learner.losses.policy import (
    LOSSES,
    ClipRange,
    LossFacts,
    PolicyColumns,
    PolicyTerms,
)


@LOSSES.register("nll", LossFacts(handles_stale_rollouts=True, supervised=True))
def nll(columns: PolicyColumns, clip: ClipRange) -> PolicyTerms:
    """-log p, whatever the advantage.

    Every token is imitated, so no advantage enters; a config combines this loss with the advantage `constant`
    only. The tokens of worked solutions were sampled from no policy, so there is no ratio: it is reported as
    1. `clip` and `old_logprobs` are ignored.
    """
    del clip
    ratio = columns.logprobs.detach().new_ones(columns.logprobs.shape)
    return PolicyTerms(loss=-columns.logprobs, ratio=ratio, clipped=ratio.new_zeros(ratio.shape).bool())
