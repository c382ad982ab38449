"""Scorers for docs/how-to/write-a-reward.md."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from orchestrator.training.rewards.completion import Completion, batched


def brevity(completion: Completion) -> float:
    """1.0 for an empty response, 0.0 for one that fills its limit.

    >>> from orchestrator.training.records import Finish, Prompt
    >>> brevity(Completion(Prompt("p", "1+1?", {"answer": 2}), "2", 25, Finish.STOP, 100))
    0.75
    """
    return 1.0 - completion.length / completion.max_new_tokens


async def judge(completion: Completion) -> float:
    """Asks a judge, here an imaginary one that likes short answers to easy questions."""
    await asyncio.sleep(0.2)
    easy = completion.prompt.columns.get("level") == "easy"
    return float(easy and len(completion.answer or "") < 10)


@batched
def reward_model(completions: Sequence[Completion]) -> list[float]:
    """Scores a whole batch with one call."""
    return [float("because" in completion.text) for completion in completions]
