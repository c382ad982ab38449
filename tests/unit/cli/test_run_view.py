from decimal import Decimal
from io import StringIO

import pytest
from rich.console import Console

from orchestrator.cli.run_view import RunSnapshot, plain_line, render, sparkline

SECOND = 1_000_000_000


def snapshot(steps: int = 10) -> RunSnapshot:
    return RunSnapshot("r1_demo · grpo", steps, "USD", started_ns=0)


def drawn(shown: RunSnapshot, width: int = 100, now_ns: int = 0) -> str:
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(render(shown, now_ns, width))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_view_shows_sampled_held_out_answers() -> None:
    shown = snapshot()
    shown.add(0, 1 * SECOND, {"accuracy/heldout": 0.25, "eval/pass_at_1": 0.2, "eval/pass_at_8": 0.4})
    shown.add(1, 2 * SECOND, {"eval/pass_at_8": 0.5, "eval/maj_at_8": 0.3})
    text = drawn(shown, now_ns=3 * SECOND)
    assert "pass@8" in text
    assert "0.40 → 0.50" in text
    assert "maj@8" in text
    assert "pass@1" not in text


def test_the_view_shows_progress_rewards_and_cost() -> None:
    shown = snapshot()
    shown.add(0, 1 * SECOND, {"accuracy/heldout": 0.31})
    for step in range(1, 6):
        shown.add(
            step,
            (1 + 2 * step) * SECOND,
            {
                "reward/mean": 0.4 + 0.05 * step,
                "rollout/reflection_fraction": 0.5,
                "rollout/tokens_per_s": 9123.4,
                "offpolicy/staleness_mean": 0.5,
                "policy/loss": 0.1,
            },
        )
    shown.add(5, 11 * SECOND, {"accuracy/heldout": 0.62})
    shown.cost = Decimal("0.0041")
    text = drawn(shown, now_ns=12 * SECOND)
    for expected in (
        "r1_demo · grpo",
        "running · 0:12",
        "step 5/10",
        "50 %",
        "0.31 → 0.62",
        "self-checks",
        "9,123 tokens/s",
        "staleness 0.5",
        "0.0041 USD",
    ):
        assert expected in text
    assert "loss" not in text  # the reward moves: it says more


def test_a_cold_start_shows_its_loss_instead_of_a_constant_reward() -> None:
    shown = snapshot()
    for step in (1, 2, 3):
        shown.add(step, step * SECOND, {"reward/mean": 1.0, "policy/loss": 2.0 / step})
    text = drawn(shown)
    assert "loss" in text
    assert "reward" not in text


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    shown = snapshot(steps=200)
    shown.title = "a_very_long_job_name · with_a_long_stage_name_too"
    for step in range(1, 150):
        shown.add(step, step * SECOND, {"reward/mean": step / 150, "accuracy/heldout": step / 150})
    assert all(len(line.rstrip()) <= width for line in drawn(shown, width).splitlines())


def test_the_view_shows_no_figures_before_the_first_measurement() -> None:
    assert snapshot().seconds_left() is None
    text = drawn(snapshot())
    assert "left" not in text
    assert "0 %" in text
    assert "tokens/s" not in text


def test_the_time_estimate_ignores_outliers() -> None:
    shown = snapshot(steps=100)
    times = [0, 2, 4, 6, 500, 502, 504]  # the laptop was closed for a while
    for step, at in enumerate(times):
        shown.add(step, at * SECOND, {})
    assert shown.seconds_left() == pytest.approx(2 * (100 - 6))


def test_the_time_estimate_includes_evaluations_in_proportion() -> None:
    shown, now = snapshot(steps=60), 0
    for step in range(31):
        now += (4 if step % 5 == 0 else 1) * SECOND
        shown.add(step, now, {})
    assert shown.seconds_left() == pytest.approx(30 * (1 + 3 / 5))


def test_repeated_steps_replace_the_older_ones() -> None:
    shown = snapshot()
    for step in (1, 2, 3, 4):
        shown.add(step, step * SECOND, {"reward/mean": float(step)})
    shown.add(3, 60 * SECOND, {"reward/mean": 30.0})
    assert shown.history["reward/mean"] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert shown.step == 3
    assert shown.seconds_left() is None  # the pause between is not a step


def test_charts_of_different_frequency_are_aligned() -> None:
    every = [(step, float(step)) for step in range(101)]
    tenth = every[::10]
    dense, sparse = sparkline(every, 100, 20), sparkline(tenth, 100, 20)
    assert len(dense) == len(sparse) == 20
    assert dense[-1] == sparse[-1] == "█"
    assert sparkline([(50, 1.0)], 100, 20, (0.0, 1.0)) == " " * 10 + "█" * 10


def test_the_log_line() -> None:
    shown = snapshot(steps=3)
    shown.add(1, 1 * SECOND, {"reward/mean": 0.5, "accuracy/heldout": 0.25, "policy/loss": 0.0})
    shown.add(2, 3 * SECOND, {"reward/mean": 0.75})
    assert plain_line(shown) == "r1_demo · grpo  step 2/3  held-out accuracy 0.25  reward 0.75  0:02 left"
