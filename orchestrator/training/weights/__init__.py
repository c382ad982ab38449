"""How weights travel from the learner to the rollout workers: `learner.weights()` -> buckets -> channel ->
`engine.load_weights()`.
"""
