"""Where the bytes of a sharded model lie: which rank holds which range of which tensor.

distributed      the rank's process group
zero             DeepSpeed ZeRO: gradients, norm, clipping, step
expert_parallel  DeepSpeed AutoEP: which rank holds which experts
fragments        where master weights and optimizer state lie
shards           the checkpoint shard of a rank; shard_files reads shards written at any world size
snapshot         a copy of a shard in host memory, so that it is written while training continues
gather           whole parameters out of a partitioned model
"""
