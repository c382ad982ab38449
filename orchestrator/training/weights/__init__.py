"""How weights travel from the learner to the rollout workers: `learner.weights` -> channel -> handle ->
channel -> `engine.load_weights`.

One file for each way; `training/cluster` adds the one that needs Ray. `choice.py` says which a run uses.
"""
