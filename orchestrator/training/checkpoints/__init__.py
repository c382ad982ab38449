"""Checkpoints. Every component of a run writes its state; a checkpoint is complete once its manifest exists.

checkpointer   saves and restores the loop and the learner, in the background if asked to
format         files, digests and the manifest of one checkpoint
store          stores for copies: a directory or an S3 prefix
mirror         copies finished checkpoints to a store
"""
