"""Random draws select the correct token and return the correct log-prob."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from transformers.generation.logits_process import MinPLogitsWarper, TopKLogitsWarper

from orchestrator.training.records import SamplingParams
from orchestrator.training.rollouts.sampling import sample, uniform_draws

LOGITS = torch.log(torch.tensor([[0.5, 0.3, 0.0, 0.2]]))


def choose(
    draw: float, temperature: float = 1.0, top_p: float = 1.0, logits: torch.Tensor = LOGITS
) -> tuple[int, float]:
    tokens, logprobs = sample(logits, torch.tensor([draw]), SamplingParams(temperature, top_p, 8, 0))
    return int(tokens), float(logprobs)


@pytest.mark.parametrize(
    ("draw", "token"), [(0.0, 0), (0.49, 0), (0.51, 1), (0.79, 1), (0.81, 3), (1 - 2**-24, 3)]
)
def test_a_draw_falls_into_the_cumulative_distribution(draw: float, token: int):
    assert choose(draw) == (token, pytest.approx(math.log([0.5, 0.3, 0.0, 0.2][token])))


def test_a_token_of_probability_zero_is_never_chosen():
    logits = torch.log(torch.tensor([[0.0, 0.4, 0.0, 0.6, 0.0]]))
    assert {choose(draw, logits=logits)[0] for draw in (0.0, 0.4, 0.5, 1 - 2**-24)} == {1, 3}


def test_temperature_scales_the_logits_before_the_log_prob():
    # sqrt(p) renormalised: temperature 2 of (0.5, 0.3, 0, 0.2)
    roots = [math.sqrt(p) for p in (0.5, 0.3, 0.0, 0.2)]
    assert choose(0.999, temperature=2.0) == (3, pytest.approx(math.log(roots[3] / sum(roots))))


def test_temperature_zero_takes_the_best_and_reports_the_plain_log_prob():
    assert choose(0.999, temperature=0.0) == (0, pytest.approx(math.log(0.5)))


@pytest.mark.parametrize(
    ("top_p", "tokens"), [(0.4, {0}), (0.49, {0}), (0.51, {0, 1}), (0.8, {0, 1}), (0.9, {0, 1, 3})]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p: float, tokens: set[int]):
    draws = (torch.arange(50) / 50).tolist()
    assert {choose(draw, top_p=top_p)[0] for draw in draws} == tokens


def test_log_probs_are_those_before_top_p():
    assert choose(0.1, top_p=0.4) == (0, pytest.approx(math.log(0.5)))


FOUR = torch.log(torch.tensor([[0.4, 0.1, 0.3, 0.2]]))
DRAWS = (torch.arange(200) + 0.5) / 200
"""Evenly spaced, so that the share of draws that choose a token is its probability within 1/200."""


def shares(logits: torch.Tensor, **options: float) -> list[float]:
    """The share of `DRAWS` that choose each token."""
    sampling = dataclasses.replace(SamplingParams(1.0, 1.0, 8, 0), **options)
    tokens, logprobs = sample(logits.expand(len(DRAWS), -1), DRAWS, sampling)
    expected = torch.log_softmax(logits[0] / sampling.temperature, -1)[tokens]
    torch.testing.assert_close(logprobs, expected)  # whatever is truncated
    return (torch.bincount(tokens, minlength=logits.shape[1]) / len(DRAWS)).tolist()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 2}, [4 / 7, 0, 3 / 7, 0]),
        ({"top_k": 4}, [0.4, 0.1, 0.3, 0.2]),
        ({"top_k": 100}, [0.4, 0.1, 0.3, 0.2]),
        ({"min_p": 0.6}, [4 / 7, 0, 3 / 7, 0]),
        ({"min_p": 0.3}, [4 / 9, 0, 3 / 9, 2 / 9]),
        ({"min_p": 1.0}, [1, 0, 0, 0]),
        ({"min_p": 0.3, "top_k": 2}, [4 / 7, 0, 3 / 7, 0]),
        # 4/9 + 3/9 reach 0.7 of the tokens that min-p leaves; of all tokens, 0.4 + 0.3 do not reach 0.75.
        ({"min_p": 0.3, "top_p": 0.75}, [4 / 7, 0, 3 / 7, 0]),
        ({"top_p": 0.75}, [4 / 9, 0, 3 / 9, 2 / 9]),
        ({"top_k": 2, "top_p": 0.5}, [1, 0, 0, 0]),
        # Squared and renormalised: 16, 1, 9 and 4 of 30. Now only two of them have half of the largest.
        ({"temperature": 0.5, "min_p": 0.5}, [16 / 25, 0, 9 / 25, 0]),
    ],
)
def test_min_p_then_top_k_then_top_p_truncate_the_tempered_distribution(
    options: dict[str, float], expected: list[float]
):
    assert shares(FOUR, **options) == pytest.approx(expected, abs=1.01 / len(DRAWS))


def test_top_k_keeps_tokens_as_probable_as_the_last_of_the_k():
    ties = torch.log(torch.tensor([[0.4, 0.2, 0.2, 0.2]]))
    assert shares(ties, top_k=2) == pytest.approx([0.4, 0.2, 0.2, 0.2], abs=1.01 / len(DRAWS))


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("top_k", "min_p"), [(0, 0.0), (5, 0.0), (0, 0.2), (7, 0.05)])
def test_truncation_keeps_the_tokens_that_transformers_keeps(temperature: float, top_k: int, min_p: float):
    logits = torch.randn(64, 40, generator=torch.Generator().manual_seed(1)) * 2
    draws = torch.rand(64, generator=torch.Generator().manual_seed(2))
    sampling = SamplingParams(temperature, 1.0, 8, 0, top_k=top_k, min_p=min_p)
    tokens, _ = sample(logits, draws, sampling)
    kept = logits / (temperature or 1.0)
    ids = torch.zeros(64, 1, dtype=torch.long)
    if top_k:
        kept = TopKLogitsWarper(top_k)(ids, kept)  # pyright: ignore[reportArgumentType]
    if min_p:
        kept = MinPLogitsWarper(min_p)(ids, kept)  # pyright: ignore[reportArgumentType]
    if temperature == 0:
        assert torch.equal(tokens, logits.argmax(-1))
        return
    cumulative = kept.softmax(-1).cumsum(-1)
    expected = (cumulative <= draws[:, None]).sum(-1)
    assert torch.equal(tokens, expected)


def test_penalised_logits_decide_the_token_and_not_its_log_prob():
    penalised = FOUR.clone()
    penalised[0, 0] = -torch.inf
    draw = torch.tensor([0.99])
    for temperature, token in ((0.0, 2), (1.0, 3)):
        sampling = SamplingParams(temperature, 1.0, 8, 0)
        tokens, logprobs = sample(FOUR, draw, sampling, penalised)
        assert (tokens.item(), logprobs.item()) == (token, pytest.approx(float(FOUR[0, token])))


@pytest.mark.slow
@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_frequencies_follow_the_distribution(top_p: float):
    rows = 20_000
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0)) * 1.5
    draws = torch.cat([uniform_draws(3, group, range(rows // 100), tokens=1)[:, 0] for group in range(100)])
    tokens, _ = sample(logits.expand(rows, -1), draws, SamplingParams(1.0, top_p, 8, 0))
    expected = torch.softmax(logits[0], -1)
    if top_p < 1:
        ordered, order = expected.sort(descending=True)
        expected[order[ordered.cumsum(0) - ordered >= top_p]] = 0
        expected /= expected.sum()
    observed = torch.bincount(tokens, minlength=12) / rows
    # Four standard deviations of a binomial share.
    assert ((observed - expected).abs() <= 4 * (expected * (1 - expected) / rows).sqrt()).all()


def test_random_draws_depend_on_seed_group_member_and_token():
    groups = [uniform_draws(1, group_id, range(4), tokens=6) for group_id in (20, 21, 22)]
    draws = torch.cat(groups)
    assert draws.dtype == torch.float32 and draws.min() >= 0 and draws.max() < 1
    assert len(set(draws.flatten().tolist())) == draws.numel()
    assert torch.equal(groups[0], uniform_draws(1, 20, range(4), tokens=6))
    assert not torch.equal(groups[0], uniform_draws(2, 20, range(4), tokens=6))


def test_random_draws_do_not_depend_on_what_else_is_sampled():
    draws = uniform_draws(1, 21, range(4), tokens=6)
    assert torch.equal(uniform_draws(1, 21, range(2), tokens=6), draws[:2])
    assert torch.equal(uniform_draws(1, 21, range(1, 3), tokens=6), draws[1:3])
    assert torch.equal(uniform_draws(1, 21, range(4), tokens=4), draws[:, :4])
    assert torch.equal(uniform_draws(1, 21, range(4), tokens=9)[:, :6], draws)
