"""Rewards of rollouts. Scorers run in child processes, which are stopped when they hang.

    RolloutBlock -> completions -> scorers (child processes) -> outcomes -> rubric -> ScoreBlock

| term | meaning |
| --- | --- |
| scorer | a function that computes one component of the reward of a rollout |
| checker | decides for the scorer `accuracy` whether an answer is correct, for one kind of reference |
| rubric | the weights of the components, and the reward of rollouts that could not be scored |
| reward | the weighted sum of the components, on which the policy is trained |

A rollout that cannot be scored gets a status and a reason (`ScoreStatus`), never a silent 0.0.
"""
