"""The order in which groups are dispatched, and to which of the requests."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.training.buffer import PendingGroup
from orchestrator.training.dispatch import LengthAwareDispatch
from orchestrator.training.records import BlockRef, GroupTicket, Prompt, ScoreRef


def pending(prompts: Sequence[str], first: int = 100) -> list[PendingGroup]:
    return [PendingGroup(first + index, Prompt(prompt, "?", {}), 0) for index, prompt in enumerate(prompts)]


def sampled(**tokens: int) -> list[GroupTicket]:
    handles = BlockRef(None), ScoreRef(None)
    return [GroupTicket(0, prompt, 0, count, 0.5, True, 0, *handles) for prompt, count in tokens.items()]


def prompts_of(parts: Sequence[Sequence[PendingGroup]]) -> list[str]:
    return ["".join(group.prompt.prompt_id for group in part) for part in parts]


def test_before_anything_is_known_groups_keep_their_order() -> None:
    dispatch = LengthAwareDispatch()
    assert prompts_of(dispatch.split(pending("abcde"), 2)) == ["ace", "bd"]
    assert dispatch.expected_tokens(pending("ab")) == {}


def test_the_longest_come_first_and_in_different_requests() -> None:
    dispatch = LengthAwareDispatch()
    dispatch.note(sampled(a=10, b=500, c=20, d=400, e=30))
    assert prompts_of(dispatch.split(pending("abcde"), 2)) == ["bea", "dc"]


def test_a_new_prompt_counts_as_long_as_the_mean_and_only_the_last_length_counts() -> None:
    dispatch = LengthAwareDispatch()
    dispatch.note(sampled(a=1, b=40))
    dispatch.note(sampled(a=100))
    assert dispatch.expected_tokens(pending("xab")) == {100: 70, 101: 100, 102: 40}
    assert prompts_of(dispatch.split(pending("xab"), 1)) == ["axb"]


def test_there_are_no_more_requests_than_groups() -> None:
    dispatch = LengthAwareDispatch()
    assert prompts_of(dispatch.split(pending("ab"), 5)) == ["a", "b"]
    assert dispatch.split([], 5) == []
