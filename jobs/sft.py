"""Cold start: imitate worked solutions. The training loop, with an engine that plays them back."""

from orchestrator.training.pipeline import Job


async def run(job: Job) -> None:
    """One stage: itself."""
    await job.train()
