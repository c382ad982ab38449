"""Reinforcement learning with verifiable rewards: the training loop with an engine that
samples from the model.
"""

from orchestrator.training.pipeline import Job


async def run(job: Job) -> None:
    """Run the training loop once, as a single stage."""
    await job.train()
