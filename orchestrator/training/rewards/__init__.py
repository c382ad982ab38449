"""How rollouts are rewarded. Scorers run in processes of their own, which are stopped when they hang.

    RolloutBlock -> completions -> scorers (child processes) -> outcomes -> rubric -> ScoreBlock

| word | meaning |
| --- | --- |
| scorer | a function that gives one number for one rollout: a component |
| checker | how the scorer `accuracy` decides whether an answer is right, for one kind of reference |
| rubric | the weights of the components; what a failure is worth |
| reward | the weighted sum: what the policy is trained on |

A rollout that cannot be scored has a status and a reason (`ScoreStatus`); it is never a silent 0.0.
"""
