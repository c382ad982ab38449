"""The run on a Ray cluster: slots, actors, and the stages of the loop over them.

The only importer of Ray in training.
"""
