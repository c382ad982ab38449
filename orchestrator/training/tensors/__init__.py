"""Transfers named tensors between the learner and rollout workers as buckets of bytes.

buckets      pack named tensors into buckets of bytes, and unpack them
write_plan   precomputed copies for publishing the same tensors again and again
"""
