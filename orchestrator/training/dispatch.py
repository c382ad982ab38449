"""Which rollout worker gets which groups, in which order: those that will probably take longest come first.

A worker that cannot start all rollouts of its requests at once would otherwise begin some of the longest ones
last, and everybody would wait for them (longest processing time first, Graham 1969). How long the rollouts of
a prompt will be is known from the last time that it was sampled, so the order changes from the second epoch
on. It decides neither which groups are requested nor what is sampled for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.training.buffer import PendingGroup
from orchestrator.training.records import GroupTicket


class LengthAwareDispatch:
    """Remembers the length of the last group of each prompt. A resumed run begins without."""

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}

    def note(self, tickets: Iterable[GroupTicket]) -> None:
        """Remember how many tokens these groups have."""
        self._tokens.update((ticket.prompt_id, ticket.tokens) for ticket in tickets)

    def expected_tokens(self, groups: Sequence[PendingGroup]) -> dict[int, int]:
        """The expected number of tokens of each group, by its id: as many as the last group of its prompt
        had, or the mean of the others if it had none. Empty if no prompt is known.
        """
        found = {group.group_id: self._tokens.get(group.prompt.prompt_id) for group in groups}
        known = [tokens for tokens in found.values() if tokens is not None]
        mean = sum(known) // len(known) if known else 0
        return {group_id: mean if each is None else each for group_id, each in found.items()} if known else {}

    def split(self, groups: Sequence[PendingGroup], shares: int) -> list[list[PendingGroup]]:
        """Split into at most `shares` non-empty parts whose sizes differ by at most one. Each part has its
        longest groups first, and the longest of all are in different parts.
        """
        expected = self.expected_tokens(groups)
        ordered = sorted(groups, key=lambda group: (-expected.get(group.group_id, 0), group.group_id))
        count = min(shares, len(ordered))
        return [ordered[share::count] for share in range(count)]
