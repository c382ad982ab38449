"""How named tensors travel between learner and rollout workers: as buckets of bytes, copied by a plan.

buckets      named tensors packed into buckets of bytes, and back
write_plan   which bytes are copied where when weights are published
"""
