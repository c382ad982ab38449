"""The weights of tokens, hand-computed; and that no split of a batch changes its loss."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.training.learner.losses.aggregation import Aggregation, rollout_token_weights

MODES: tuple[Aggregation, ...] = ("token", "sequence", "constant")


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token", [1 / 9, 1 / 9, 1 / 9, 1 / 9]),  # 2 + 2 + 2 + 3 = 9 tokens
        ("sequence", [1 / 8, 1 / 8, 1 / 8, 1 / 12]),  # 4 rollouts x 2, x 2, x 2, x 3
        ("constant", [1 / 20, 1 / 20, 1 / 20, 1 / 20]),  # 4 rollouts x 5 tokens allowed
    ],
)
def test_weights(mode: Aggregation, expected: list[float]) -> None:
    weights = rollout_token_weights(torch.tensor([2, 2, 2, 3]), mode, max_new_tokens=5)
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)


def test_the_aggregated_losses_are_the_published_ones() -> None:
    # Two rollouts of losses (1, 3) and (2, 2, 2, 6). Means 2 and 3; sums 4 and 12.
    losses = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 6.0], dtype=torch.float64)
    lengths = torch.tensor([2, 4])
    aggregated = {
        mode: float((rollout_token_weights(lengths, mode, 8).repeat_interleave(lengths) * losses).sum())
        for mode in MODES
    }
    # token 16 / 6; sequence (2 + 3) / 2; constant (4 + 12) / (2 x 8)
    assert aggregated == pytest.approx({"token": 16 / 6, "sequence": 2.5, "constant": 1.0})


@pytest.mark.parametrize(
    ("mode", "expected"), [("token", [0.25, 0.25]), ("sequence", [0.0, 0.125]), ("constant", [0.1, 0.1])]
)
def test_an_empty_rollout_counts_and_divides_by_nothing(mode: Aggregation, expected: list[float]) -> None:
    assert rollout_token_weights(torch.tensor([0, 4]), mode, 5).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_without_a_token_is_finite(mode: Aggregation) -> None:
    assert torch.isfinite(rollout_token_weights(torch.tensor([0, 0]), mode, 5)).all()
    assert rollout_token_weights(torch.tensor([], dtype=torch.int64), mode, 5).shape == (0,)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="aggregation: got 'mean', allowed: token, sequence, constant"):
        rollout_token_weights(torch.tensor([1]), "mean", 5)  # pyright: ignore[reportArgumentType]


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=8),
    mode=st.sampled_from(MODES),
    order=st.randoms(use_true_random=False),
)
def test_weights_sum_to_one_and_do_not_depend_on_the_order(
    lengths: list[int], mode: Aggregation, order: random.Random
) -> None:
    columns = torch.tensor(lengths)
    weights = rollout_token_weights(columns, mode, 12)
    mass = float((weights * columns).sum())  # the loss if every token's loss is 1
    filled = sum(length > 0 for length in lengths)
    expected = {
        "token": 1.0 if filled else 0.0,
        "sequence": filled / len(lengths),
        "constant": sum(lengths) / (12 * len(lengths)),
    }
    assert mass == pytest.approx(expected[mode])

    permutation = list(range(len(lengths)))
    order.shuffle(permutation)
    torch.testing.assert_close(rollout_token_weights(columns[permutation], mode, 12), weights[permutation])
