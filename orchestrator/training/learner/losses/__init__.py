"""From columns of token log-probs to a scalar whose gradient is the update, in four independent steps:

    policy/       the loss of each token: clipped, cispo, gspo, ...        PolicyColumns -> PolicyTerms [T]
    importance    which log-probs the ratio is taken against, and the weights of off-policy tokens
    kl            a penalty against the reference model                    k1, k2, k3
    aggregation   what one token weighs in the batch                       lengths [N] -> weights [N]

`objective.Objective` puts the first three together, and `metrics` counts what it did. Nothing here is
aggregated over a micro-batch: the loss of a step is the sum over all tokens of weight x loss, with
weights computed from the whole batch, so that packing, micro-batches and the number of ranks never
change the gradient. A loss may depend on all tokens of a rollout, because a micro-batch holds whole rollouts
(`token_rows`).

This package is named by configs, so importing it does not import torch.
"""

from orchestrator.training.learner.losses.policy import (
    LOSSES,
    ClipRange,
    LossFacts,
    PolicyColumns,
    PolicyLoss,
    PolicyTerms,
)

__all__ = ["LOSSES", "ClipRange", "LossFacts", "PolicyColumns", "PolicyLoss", "PolicyTerms"]
