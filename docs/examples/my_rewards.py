"""A scorer of one's own: short thoughts are worth a little."""

from __future__ import annotations

from orchestrator.training.rewards.completion import Completion


def brevity(completion: Completion) -> float:
    """1.0 for an empty response, 0.0 for one that fills its limit.

    >>> from orchestrator.training.records import Finish, Prompt
    >>> brevity(Completion(Prompt("p", "1+1?", {"answer": 2}), "2", 25, Finish.STOP, 100))
    0.75
    """
    return 1.0 - completion.length / completion.max_new_tokens
