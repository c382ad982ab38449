"""A reward that differs between the rollouts of a group whatever the model writes."""

from __future__ import annotations

import hashlib

from orchestrator.training.rewards.completion import Completion


def by_digest(completion: Completion) -> float:
    """0 or 1, from the digest of the text."""
    return float(hashlib.blake2b(completion.text.encode(), digest_size=1).digest()[0] % 2)
