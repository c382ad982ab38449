"""The learner: scored rollouts in, one optimizer step, weights out.

port, fake          the `Learner` protocol and its twin without a model
deepspeed_learner   the real one: rows -> plan -> accumulate -> step
rows                rewards to advantages, and what each token weighs in the whole batch
batching            rows to ranks and to micro-batches of a token budget
micro_batch         rows as tensors
logprobs, losses    the model's log-probs of the trained tokens, and what they cost
routing             experts' loads, and the selection bias that balances them
distributed         the rank's process group
zero                DeepSpeed: gradients, norm, clipping, step
fragments, shards   where master weights and optimizer state lie, and the checkpoint shard of a rank
snapshot            a copy of the shard, so that it is written while training goes on
gather              whole parameters out of a partitioned model
adapters            LoRA: what is trained is small, what leaves is merged
activations         layers that are computed again in the backward pass
schedule            the learning rate
"""
