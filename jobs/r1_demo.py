"""DeepSeek-R1 in miniature: a cold start on worked solutions, then reinforcement learning from there."""

from orchestrator.training.pipeline import Job


async def run(job: Job) -> None:
    """Two stages; the second starts from what the first one made."""
    cold_start = await job.stage("cold_start")
    await job.stage("grpo", start_from=cold_start)
