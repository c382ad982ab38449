"""Cold start on worked solutions: the training loop with an engine that plays the solutions back."""

from orchestrator.training.pipeline import Job


async def run(job: Job) -> None:
    """Run the training loop once, as a single stage."""
    await job.train()
