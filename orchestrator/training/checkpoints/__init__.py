"""Checkpoints: written by every part of a run, complete only once their manifest exists.

checkpointer   saves and restores the loop and the learner, in the background if asked to
format         files, digests and the manifest of one checkpoint
store          where copies are kept: a directory or an S3 prefix
mirror         copies finished checkpoints to a store
"""
