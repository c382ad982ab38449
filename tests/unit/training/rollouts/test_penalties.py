"""The repetition penalty against transformers' own, and the tokens that min_new_tokens forbids."""

from __future__ import annotations

import dataclasses

import torch
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from orchestrator.training.records import SamplingParams
from orchestrator.training.rollouts.penalties import Penalties

OFF = SamplingParams(1.0, 1.0, 8, 0)
PROMPTS = [[3, 4, 4], [9]]
END, OTHER_END = 2, 7
CPU = torch.device("cpu")


def penalties(**options: float) -> Penalties:
    """Four rollouts, two of each prompt, in rows that other rollouts have used before."""
    found = Penalties.of(dataclasses.replace(OFF, **options), 4, [END, OTHER_END], CPU)
    assert found is not None
    found.start(torch.arange(4), [1, 1, 1, 1, 1])
    found.note(torch.tensor([1, 2]), torch.tensor([10, 8]))
    for prompt, rows in zip(PROMPTS, ([0, 1], [2, 3]), strict=True):
        found.start(torch.tensor(rows), prompt)
    return found


def test_a_request_without_penalties_costs_nothing():
    assert Penalties.of(OFF, 4, [END], CPU) is None


def test_tokens_of_the_prompt_and_of_the_response_are_penalised_as_in_transformers():
    logits = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    request = penalties(repetition_penalty=1.3)
    rollouts = torch.tensor([0, 1, 3])  # two of the first prompt, one of the second
    responses = [[5, 6], [3, 11], [9, 0]]
    for tokens in zip(*responses, strict=True):
        request.note(rollouts, torch.tensor(tokens))
    penalised = request.apply(logits, rollouts, torch.full((3,), 2))
    process = RepetitionPenaltyLogitsProcessor(1.3)
    for row, (rollout, response) in enumerate(zip(rollouts.tolist(), responses, strict=True)):
        ids = torch.tensor([[*PROMPTS[rollout // 2], *response]])
        expected = process(ids, logits[row : row + 1])  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(penalised[row : row + 1], expected)


def test_the_model_s_logits_stay_as_they_are():
    logits = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    both = penalties(repetition_penalty=0.5, min_new_tokens=4)
    both.apply(logits, torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert torch.equal(logits, before)


def test_the_first_tokens_of_a_response_cannot_end_it():
    logits = torch.zeros(3, 12)
    places = torch.tensor([0, 1, 2])
    penalised = penalties(min_new_tokens=2).apply(logits, torch.tensor([0, 1, 2]), places)
    forbidden = penalised == -torch.inf
    assert forbidden.nonzero().tolist() == [[0, END], [0, OTHER_END], [1, END], [1, OTHER_END]]
    assert (penalised[~forbidden] == 0).all()


def test_an_end_token_outside_the_logits_is_left_out():
    """A tokenizer may know more tokens than the model predicts."""
    request = Penalties.of(dataclasses.replace(OFF, min_new_tokens=1), 1, [END, 99], CPU)
    assert request is not None
    penalised = request.apply(torch.zeros(1, 4), torch.tensor([0]), torch.tensor([0]))
    assert penalised.isinf().nonzero().tolist() == [[0, END]]
