"""Whole runs of the real loop, buffer and supervision, in virtual time."""

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.training.simulation.run import Simulation, SimulationSettings, simulate
from orchestrator.training.simulation.stages import Timing
from tests.simulation.expected import ALMOST_ONLY_FAULTS, MANY_FAULTS, assert_complete

BASE = SimulationSettings(seed=11, steps=40, max_staleness=1, prompts_per_step=8)


def trace_of(simulation: Simulation) -> str:
    return "\n".join(map(repr, simulation.trace.lines))


@pytest.mark.parametrize("dynamic_sampling", [False, True], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_hundreds_of_steps_with_every_kind_of_fault(
    max_staleness: int, dynamic_sampling: bool, tmp_path: Path
) -> None:
    settings = replace(
        BASE,
        steps=200,
        max_staleness=max_staleness,
        dynamic_sampling=dynamic_sampling,
        evaluate_every=25,
        faults=MANY_FAULTS,
        timing=Timing(portions=1 + max_staleness),
        rollouts_per_worker=1 + 16 * max_staleness,
    )
    simulation = simulate(settings, tmp_path)
    assert_complete(simulation, settings, tmp_path)
    kinds = {kind for _, kind, _ in simulation.trace.lines}
    assert {
        "worker_lost",
        "learner_lost",
        "restored",
        "rollouts_lost",
        "record_lost",
        "checkpoint",
        "step",
    } <= kinds


@pytest.mark.parametrize("seed", range(20))
def test_short_runs_in_which_almost_everything_fails(seed: int, tmp_path: Path) -> None:
    faults = replace(ALMOST_ONLY_FAULTS, late_publish=0.2)
    settings = SimulationSettings(
        seed=seed,
        steps=6,
        max_staleness=seed % 4,
        prompts_per_step=1 + seed % 5,
        rollout_workers=1 + seed % 3,
        reward_workers=1 + seed % 2,
        heldout_prompts=seed % 4,
        evaluate_every=seed % 3,
        checkpoint_every=1 + seed % 2,
        dynamic_sampling=bool(seed % 2),
        max_resampled=20.0,
        faults=faults,
        timing=Timing(portions=1 + seed % 3),
        rollouts_per_worker=1 + 4 * (seed % 4),
    )
    assert_complete(simulate(settings, tmp_path), settings, tmp_path)


def test_the_same_seed_gives_the_same_trace_byte_for_byte(tmp_path: Path) -> None:
    settings = replace(BASE, faults=MANY_FAULTS, max_staleness=3, dynamic_sampling=True, evaluate_every=10)
    first, second = (trace_of(simulate(settings, tmp_path / name)) for name in ("a", "b"))
    other = trace_of(simulate(replace(settings, seed=12), tmp_path / "c"))
    assert first == second
    assert first != other


def test_a_lookahead_needs_less_time(tmp_path: Path) -> None:
    def seconds(max_staleness: int) -> float:
        simulation = simulate(
            replace(BASE, max_staleness=max_staleness, checkpoint_every=0), tmp_path / str(max_staleness)
        )
        return simulation.trace.lines[-1][0] / 1e9

    synchronous, one_step, three_steps = seconds(0), seconds(1), seconds(3)
    assert three_steps < one_step < 0.8 * synchronous


def test_synchronous_training_is_on_policy(tmp_path: Path) -> None:
    simulation = simulate(replace(BASE, max_staleness=0), tmp_path)
    assert set(simulation.learner.staleness) == {0}


def test_a_lookahead_is_used(tmp_path: Path) -> None:
    simulation = simulate(replace(BASE, max_staleness=3), tmp_path)
    assert max(simulation.learner.staleness) > 0


def test_no_group_is_sampled_in_excess(tmp_path: Path) -> None:
    simulation = simulate(replace(BASE, max_staleness=3), tmp_path)
    sampled = sum(report.metrics.get("rollout/count", 0) for report in simulation.trace.reports)
    assert sampled == BASE.steps * BASE.prompts_per_step * BASE.group_size


@pytest.mark.parametrize("max_staleness", [0, 3])
def test_a_run_of_zero_steps(max_staleness: int, tmp_path: Path) -> None:
    settings = replace(BASE, steps=0, max_staleness=max_staleness, evaluate_every=1)
    simulation = simulate(settings, tmp_path)
    assert simulation.learner.trained == []
    assert [report.step for report in simulation.trace.reports] == [0]
    assert (tmp_path / "model" / "trained.txt").read_text() == ""


def evaluated_at(simulation: Simulation) -> list[int]:
    return [report.step for report in simulation.trace.reports if "accuracy/heldout" in report.metrics]


@pytest.mark.parametrize(
    ("every", "expected"),
    [(0, []), (2, [0, 2, 4, 5]), (5, [0, 5]), (7, [0, 5])],
    ids=str,
)
def test_evaluations_happen_at_the_configured_steps(every: int, expected: list[int], tmp_path: Path) -> None:
    settings = replace(BASE, steps=5, evaluate_every=every)
    assert evaluated_at(simulate(settings, tmp_path)) == expected


@pytest.mark.parametrize("heldout", [0, 1, 3, 16])
def test_there_may_be_fewer_held_out_prompts_than_workers(heldout: int, tmp_path: Path) -> None:
    settings = replace(BASE, steps=2, evaluate_every=1, heldout_prompts=heldout, rollout_workers=4)
    simulation = simulate(settings, tmp_path)
    assert evaluated_at(simulation) == ([0, 1, 2] if heldout else [])


def test_spans_of_past_steps_are_dropped(tmp_path: Path) -> None:
    simulation = simulate(replace(BASE, steps=60, max_staleness=3, evaluate_every=10), tmp_path)
    held = simulation.loop._tally.times._spans  # pyright: ignore[reportPrivateUsage]
    assert len(held) <= 8


def test_the_time_of_a_synchronous_step_adds_up(tmp_path: Path) -> None:
    settings = replace(BASE, max_staleness=0, steps=5, rollout_workers=1, reward_workers=1)
    for report in simulate(settings, tmp_path).trace.reports:
        parts = ("generate", "score", "learn", "sync", "orchestration")
        assert sum(report.metrics[f"time/{part}"] for part in parts) == pytest.approx(
            report.metrics["time/step"]
        )
        assert report.metrics["time/orchestration"] == pytest.approx(0, abs=1e-6)
        at_work = [report.metrics[f"time/{part}"] for part in ("generate", "score")]
        assert report.metrics["time/wait_batch"] == pytest.approx(sum(at_work))
        for role, part in (("rollout", "generate"), ("reward", "score")):
            share = report.metrics[f"time/{part}"] / report.metrics["time/step"]
            assert report.metrics[f"utilisation/{role}"] == pytest.approx(share)


def test_sampled_held_out_answers_are_evaluated_besides_the_greedy_ones(tmp_path: Path) -> None:
    """Of four answers to prompt i, the first i mod 5 are correct; in 10 prompts, 0 to 4 occur twice each."""
    settings = replace(BASE, steps=2, evaluate_every=1, heldout_prompts=10, sampled_answers=4)
    greedy = simulate(replace(settings, sampled_answers=0), tmp_path / "greedy").trace.reports
    reports = simulate(settings, tmp_path / "sampled").trace.reports
    assert [report.step for report in reports] == [0, 1, 2]
    for report, without in zip(reports, greedy, strict=True):
        found = {name: value for name, value in report.metrics.items() if name.startswith("eval/")}
        assert found == {
            "eval/pass_at_1": pytest.approx((0 + 1 + 2 + 3 + 4) / 20),
            "eval/pass_at_2": pytest.approx((0 + 1 / 2 + 5 / 6 + 1 + 1) / 5),
            "eval/pass_at_4": pytest.approx(4 / 5),
            "eval/maj_at_4": pytest.approx(3 / 5),
        }
        assert not [name for name in without.metrics if name.startswith("eval/")]
        assert report.metrics["accuracy/heldout"] == without.metrics["accuracy/heldout"]
        assert report.metrics.get("rollout/count") == without.metrics.get("rollout/count")
