"""The layout of a sharded model: which rank holds which range of which tensor.

distributed       the rank's process group
deepspeed_import  imports DeepSpeed without the packages that a learner never uses
zero              DeepSpeed ZeRO: gradients, norm, clipping, step
expert_parallel   DeepSpeed AutoEP: which rank holds which experts
state_ranges      the ranges of master weights and optimizer state on each rank
shards            the checkpoint shard of a rank; shard_files reads shards written at any world size
snapshot          a copy of a shard in host memory, so that it can be written while training continues
gather            gathers whole parameters from a partitioned model
"""
