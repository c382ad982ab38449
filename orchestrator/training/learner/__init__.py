"""The learner: scored rollouts in, one optimizer step, weights out.

port, fake          the `Learner` protocol and an in-memory implementation without a model
deepspeed_learner   the real one: rows -> plan -> accumulate -> step
rows                rewards to advantages, and the weight of each token in the whole batch
batching            rows to ranks, and to micro-batches of a token budget
micro_batch         rows as tensors
logprobs, losses    the model's log-probs of the trained tokens, and the loss on them
reference           the frozen model of a KL penalty
routing             expert loads, and the selection bias that balances them
adapters            LoRA: adapters are trained and saved; published weights are merged
activations         activation checkpointing
schedule            the learning rate
sharding/           parameters, gradients and optimizer state that are sharded over ranks
"""
