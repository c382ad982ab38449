"""DeepSeek-R1 in miniature: a cold start on worked solutions, followed by reinforcement learning."""

from orchestrator.training.pipeline import Job


async def run(job: Job) -> None:
    """Run two stages. The second one starts from the model that the first one trained."""
    cold_start = await job.stage("cold_start")
    await job.stage("grpo", start_from=cold_start)
