"""One learner rank from a run's configs: where the learner, the algorithm and the models meet, in no stage's
package.
"""

from __future__ import annotations

from orchestrator.training.advantages import ADVANTAGES
from orchestrator.training.advantages.config import AlgorithmConfig
from orchestrator.training.learner.config import LearnerConfig
from orchestrator.training.learner.deepspeed_learner import DeepSpeedLearner, Trainee
from orchestrator.training.learner.distributed import DistributedInit
from orchestrator.training.learner.losses import LOSSES, ClipRange
from orchestrator.training.learner.losses.objective import Objective
from orchestrator.training.learner.rows import UpdateRule
from orchestrator.training.models.build import build_model, build_tokenizer
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.rollouts.config import RolloutConfig


def build_learner(
    init: DistributedInit,
    model: ModelConfig,
    learner: LearnerConfig,
    algorithm: AlgorithmConfig,
    rollout: RolloutConfig,
    *,
    seed: int,
    steps: int,
) -> DeepSpeedLearner:
    """Build the rank's model, join the other ranks and partition it among them. Blocks until all have come.

    A KL penalty is against the model the run starts from, which is built once more and kept whole on every
    rank.
    """
    reference = build_model(model, seed) if algorithm.kl.coefficient > 0 else None
    trainee = Trainee(build_model(model, seed), build_tokenizer(model), reference)
    return DeepSpeedLearner(init, learner, update_rule(algorithm, rollout), trainee, steps)


def update_rule(algorithm: AlgorithmConfig, rollout: RolloutConfig) -> UpdateRule:
    """The algorithm as the learner applies it. Raises ConfigError for a name that nobody registered.

    A cold start plays back solutions that nobody sampled, at any temperature, 0 too: there the learner's own
    distribution is taken as it is.
    """
    off_policy = algorithm.off_policy
    return UpdateRule(
        advantages=ADVANTAGES.get(algorithm.advantage),
        objective=Objective(
            policy=LOSSES.get(algorithm.loss),
            clip=ClipRange(algorithm.clip_low, algorithm.clip_high),
            truncation=off_policy.truncation if off_policy.correction != "none" else None,
            kl_coefficient=algorithm.kl.coefficient,
            kl_estimator=algorithm.kl.estimator,
        ),
        aggregation=algorithm.aggregation,
        drop_uninformative=algorithm.drop_uninformative,
        temperature=1.0 if algorithm.loss == "nll" else rollout.temperature,
        max_new_tokens=rollout.max_new_tokens,
    )
