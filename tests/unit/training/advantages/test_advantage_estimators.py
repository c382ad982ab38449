"""Every estimator against hand-computed numbers, with its degenerate case and its symmetries."""

from __future__ import annotations

import math
import pkgutil
import random
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import orchestrator.training.advantages as package
from orchestrator.training.advantages import ADVANTAGES

ALL = ["constant", "dr_grpo", "gae", "grpo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "rloo"]
GROUP_RELATIVE = {name for name in ALL if ADVANTAGES.facts(name).group_relative}


def rewards(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def check(name: str, given_: torch.Tensor, expected: list[list[float]], atol: float = 1e-12) -> None:
    got = ADVANTAGES.get(name)(given_)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=atol)


# Two prompts of four rollouts. Row 0: sum 1, mean 0.25. Row 1: sum 8, mean 2.
BATCH = rewards([1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 3.0, 3.0])


def test_gae_leaves_rewards_to_the_learner() -> None:
    check("gae", BATCH, BATCH.tolist(), atol=0)
    check("gae", rewards([0.25]), [[0.25]], atol=0)


def test_grpo_divides_by_the_sample_standard_deviation_of_the_group() -> None:
    # Row 0: deviations .75 -.25 -.25 -.25, squares .5625 + 3 x .0625 = .75, std = sqrt(.75 / 3) = .5.
    # Row 1: deviations -1 -1 1 1, squares sum to 4, std = sqrt(4 / 3) = 1.1547005384.
    # EPSILON = 1e-6 is added to each std: 0.75 / 0.500001 = 1.4999970000, 1 / 1.1547015384 = 0.8660246538.
    a, b = 0.75 / 0.500001, 0.25 / 0.500001
    c = 1 / (math.sqrt(4 / 3) + 1e-6)
    check("grpo", BATCH, [[a, -b, -b, -b], [-c, -c, c, c]])
    assert (a, b, c) == pytest.approx((1.5, 0.5, 0.8660254), abs=4e-6)


def test_dr_grpo_subtracts_the_mean_of_the_group() -> None:
    check("dr_grpo", BATCH, [[0.75, -0.25, -0.25, -0.25], [-1, -1, 1, 1]])


def test_rloo_subtracts_the_mean_of_the_others() -> None:
    # Row 0: the others of the success have mean 0; those of a failure (1 + 0 + 0) / 3.
    # Row 1: the others of a 1 are 1 3 3, mean 7/3; those of a 3 are 1 1 3, mean 5/3.
    third = 1 / 3
    check("rloo", BATCH, [[1, -third, -third, -third], [1 - 7 / 3, 1 - 7 / 3, 3 - 5 / 3, 3 - 5 / 3]])


def test_reinforce_plus_plus_normalises_over_the_batch() -> None:
    # Eight rewards 1 0 0 0 1 1 3 3: mean 9/8 = 1.125; squares 1 + 1 + 1 + 9 + 9 = 21, 21/8 - 1.125^2 =
    # 2.625 - 1.265625 = 1.359375, std = 1.1659223816 (population).
    std = 1.1659223816361019
    low, one, three = -1.125 / std, -0.125 / std, 1.875 / std
    check("reinforce_plus_plus", BATCH, [[one, low, low, low], [one, one, three, three]], atol=1e-7)


def test_reinforce_plus_plus_baseline_has_one_scale_for_all_groups() -> None:
    # Deviations .75 -.25 -.25 -.25 / -1 -1 1 1: squares .75 + 4 = 4.75, std = sqrt(4.75 / 8) = .7705517503.
    std = 0.7705517503711221
    expected = [[0.75 / std, -0.25 / std, -0.25 / std, -0.25 / std], [-1 / std, -1 / std, 1 / std, 1 / std]]
    check("reinforce_plus_plus_baseline", BATCH, expected, atol=1e-7)


def test_constant_ignores_rewards() -> None:
    check("constant", BATCH, [[1, 1, 1, 1], [1, 1, 1, 1]])


@pytest.mark.parametrize("name", sorted(GROUP_RELATIVE))
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1e9 / 3])
def test_a_group_of_equal_rewards_gets_exactly_zero(name: str, value: float) -> None:
    # 0.1 + 0.1 + 0.1 = 0.30000000000000004: the mean is not 0.1, so zero does not follow from subtracting.
    got = ADVANTAGES.get(name)(rewards([value] * 3, [0.0, 0.0, 1.0]))
    assert got[0].tolist() == [0.0, 0.0, 0.0]
    assert got[1].abs().min() > 0.1


@pytest.mark.parametrize("name", sorted(GROUP_RELATIVE | {"reinforce_plus_plus"}))
def test_a_batch_of_equal_rewards_gets_exactly_zero(name: str) -> None:
    assert ADVANTAGES.get(name)(rewards([0.1] * 3, [0.1] * 3)).tolist() == [[0.0] * 3] * 2


def test_rounding_errors_are_not_amplified() -> None:
    almost_equal = rewards([0.3, 0.1 + 0.2, 0.3, 0.3])  # 0.1 + 0.2 is one bit above 0.3
    assert ADVANTAGES.get("grpo")(almost_equal).abs().max() < 1e-9


@pytest.mark.parametrize("name", sorted(GROUP_RELATIVE))
def test_a_group_of_one_has_no_baseline(name: str) -> None:
    with pytest.raises(ValueError, match="got 2 groups of 1, allowed: at least 1 group of at least 2"):
        ADVANTAGES.get(name)(rewards([1.0], [0.0]))


def test_a_batch_baseline_works_with_one_rollout_per_prompt() -> None:
    check("reinforce_plus_plus", rewards([1.0], [0.0]), [[1.0], [-1.0]], atol=1e-7)  # mean .5, std .5


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(4, dtype=torch.float64), "got torch.float64 \\[4\\]"),
        (torch.zeros(2, 2), "got torch.float32 \\[2, 2\\]"),
        (torch.zeros(0, 2, dtype=torch.float64), "got 0 groups of 2"),
        (torch.tensor([[1.0, math.nan]], dtype=torch.float64), "got NaN or infinity"),
    ],
    ids=["flat", "float32", "empty", "nan"],
)
def test_invalid_rewards_are_rejected(name: str, bad: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ADVANTAGES.get(name)(bad)


def batches() -> st.SearchStrategy[torch.Tensor]:
    """[P, G] batches of rewards that are multiples of 1/8, so that shifts of them are exact."""
    cell = st.integers(-16, 16).map(lambda eighths: eighths / 8)
    sizes = st.tuples(st.integers(1, 4), st.integers(2, 6))
    return sizes.flatmap(
        lambda size: st.lists(
            st.lists(cell, min_size=size[1], max_size=size[1]), min_size=size[0], max_size=size[0]
        ).map(lambda rows: torch.tensor(rows, dtype=torch.float64))
    )


@settings(max_examples=30, deadline=None)
@given(batch=batches(), shift=st.integers(-8, 8), order=st.randoms(use_true_random=False))
def test_advantages_are_centred_and_invariant_to_shifts_and_permutations(
    batch: torch.Tensor, shift: int, order: random.Random
) -> None:
    permutation = list(range(batch.shape[1]))
    order.shuffle(permutation)
    for name in sorted(GROUP_RELATIVE | {"reinforce_plus_plus"}):
        estimate = ADVANTAGES.get(name)
        got = estimate(batch)
        torch.testing.assert_close(got.sum(), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-6)
        torch.testing.assert_close(estimate(batch + shift), got, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(estimate(batch[:, permutation]), got[:, permutation])
        torch.testing.assert_close(estimate(batch.flip(0)), got.flip(0))
        if name in GROUP_RELATIVE:
            torch.testing.assert_close(
                got.sum(1), torch.zeros(len(got), dtype=torch.float64), rtol=0, atol=1e-6
            )


@settings(max_examples=30, deadline=None)
@given(batch=batches(), scale=st.sampled_from([0.25, 2.0, 16.0]))
def test_scaling_rewards_scales_advantages_or_leaves_them_unchanged(
    batch: torch.Tensor, scale: float
) -> None:
    for name in ("grpo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"):  # divided by a spread
        estimate = ADVANTAGES.get(name)
        torch.testing.assert_close(estimate(batch * scale), estimate(batch), rtol=1e-4, atol=1e-6)
    for name in ("dr_grpo", "rloo"):  # in units of reward
        estimate = ADVANTAGES.get(name)
        torch.testing.assert_close(estimate(batch * scale), estimate(batch) * scale)


@settings(max_examples=30, deadline=None)
@given(batch=batches())
def test_the_estimators_are_consistent_with_each_other(batch: torch.Tensor) -> None:
    group_size = batch.shape[1]
    centred = ADVANTAGES.get("dr_grpo")(batch)
    torch.testing.assert_close(ADVANTAGES.get("rloo")(batch) * (group_size - 1) / group_size, centred)
    # A normalised group has sum of squares G - 1 (sample std), whatever its rewards.
    energy = ADVANTAGES.get("grpo")(batch).square().sum(1)
    spread = batch.std(1) > 0
    torch.testing.assert_close(
        energy[spread], torch.full_like(energy[spread], group_size - 1), rtol=1e-4, atol=0
    )


def test_every_module_of_the_package_is_an_estimator_of_its_name() -> None:
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert sorted(name for name in modules if not name.startswith("_") and name != "config") == ALL
    for name in ALL:
        assert ADVANTAGES.get(name).__name__ == name  # pyright: ignore[reportAttributeAccessIssue]


def test_configs_names_and_facts_do_not_import_torch() -> None:
    code = (
        "import sys\n"
        "from orchestrator.training.advantages import ADVANTAGES\n"
        "import orchestrator.training.advantages.config\n"
        "from orchestrator.training.learner.losses import LOSSES\n"
        "from orchestrator.training.rollouts.engines import ENGINES\n"
        "for registry in (ADVANTAGES, LOSSES, ENGINES):\n"
        "    assert [registry.facts(name) for name in registry.names()]\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
