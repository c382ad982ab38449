"""Transfers weights from the learner to the rollout workers:

    learner.weights -> channel.publish -> handle -> channel.pull -> engine.load_weights

`choice.py` picks the channel of a run. On one node it is `shared_memory.py`; between nodes it is Ray's object
store (`training/cluster/object_store_channel.py`, because only that package imports Ray).
"""
