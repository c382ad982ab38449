"""The pure functions of benchmarks/vs_trl.py: reading steps and computing result rows."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from orchestrator.config.compose import compose

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def vs_trl(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("vs_trl")


@pytest.fixture
def process_cpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("process_cpu")


def step(vs_trl: ModuleType, **changes: Any) -> Any:
    values = {
        "ended_ns": 0,
        "step_s": 2.0,
        "generate_s": 0.5,
        "tokens": 1000,
        "rollouts": 100,
        "reward": 0.5,
        "reward_std": 0.5,
    }
    return vs_trl.Step(**(values | changes))


def test_a_row_has_the_medians_over_the_steps_of_all_rounds(vs_trl: ModuleType) -> None:
    fast, slow = step(vs_trl, step_s=1.0), step(vs_trl, step_s=100.0, reward=0.8)
    rounds = [vs_trl.Round((fast, step(vs_trl)), 3.0), vs_trl.Round((slow,), 9.0)]
    row = vs_trl.figures("ours", rounds)
    assert row == {
        "system": "ours",
        "tokens_per_s": 500,
        "step_s": 2.0,
        "generate_s": 0.5,
        "update_s": 1.5,
        "reward": 0.6,
        "reward_error": 0.0289,  # sqrt(3 * 0.5^2 / 100) / 3
        "cpu_s": 6.0,
        "tokens_per_cpu_s": 200,  # 3000 tokens in 3 + 3 + 9
        "length_mean": 10.0,
        "rounds": 2,
        "steps": 3,
    }


@pytest.mark.parametrize(
    ("speed", "reward", "reached"),
    [(400, 0.5, True), (399, 0.9, False), (900, 0.47, True), (900, 0.46, False)],
)
def test_the_target_is_four_times_the_speed_without_a_lower_reward(
    vs_trl: ModuleType, speed: int, reward: float, reached: bool
) -> None:
    trl = {"tokens_per_s": 100, "tokens_per_cpu_s": 50, "reward": 0.5, "reward_error": 0.012}
    ours = {"tokens_per_s": speed, "tokens_per_cpu_s": 300, "reward": reward, "reward_error": 0.012}
    verdict = vs_trl.compared(trl, ours)
    assert verdict["reached"] is reached
    assert verdict["speedup"] == speed / 100
    assert verdict["cpu_speedup"] == 6.0


def test_the_first_step_is_a_warm_up(vs_trl: ModuleType) -> None:
    class Meter:
        def between(self, start_ns: int, end_ns: int) -> float:
            return (end_ns - start_ns) * 3.0

    steps = [step(vs_trl, ended_ns=10), step(vs_trl, ended_ns=11), step(vs_trl, ended_ns=12)]
    assert vs_trl.warmed_up(steps, Meter()) == vs_trl.Round(tuple(steps[1:]), 3.0)


def test_our_steps_are_read_from_the_metrics(vs_trl: ModuleType) -> None:
    metrics = {
        "time/step": 0.5,
        "time/generate": 0.2,
        "rollout/tokens": 14000.0,
        "rollout/count": 512.0,
        "reward/mean": 0.3,
        "reward/std": 0.4,
    }
    assert vs_trl.our_step(7, metrics) == vs_trl.Step(7, 0.5, 0.2, 14000, 512, 0.3, 0.4)


def test_steps_of_trl_are_summed_over_its_processes(vs_trl: ModuleType) -> None:
    ranks = [
        {"began_ns": 0, "ended_ns": 2_000_000_000, "generate_s": 1.0, "tokens": 30, "rewards": [1.0, 0.0]},
        {"began_ns": 9, "ended_ns": 2_000_000_009, "generate_s": 1.5, "tokens": 40, "rewards": [1.0, 1.0]},
    ]
    assert vs_trl.trl_step(ranks) == vs_trl.Step(2_000_000_009, 2.0, 1.5, 70, 4, 0.75, 0.4330127018922193)


@pytest.mark.slow
def test_trl_gets_the_same_settings(vs_trl: ModuleType, tmp_path: Path) -> None:
    overrides = [*vs_trl.SAME_FOR_BOTH, *vs_trl.NOT_TIMED, *vs_trl.LAYOUT, "learner.learning_rate=1e-3"]
    config = compose("grpo", [*overrides, f"model.path={tmp_path}"])
    request = vs_trl.trl_request(config, processes=2)
    assert request["rows_per_forward"] == 256
    assert request["learning_rate"] == 1e-3
    assert request["components"] == {"accuracy": 1.0, "format": 0.1}
    assert config.algorithm.aggregation == "token"
    assert config.algorithm.kl.coefficient == 0


def test_cpu_seconds_are_interpolated_linearly(process_cpu: ModuleType) -> None:
    samples = [(10, 1.0), (20, 3.0), (40, 3.0)]
    assert [process_cpu.interpolated(samples, at) for at in (0, 10, 15, 20, 30, 99)] == [1, 1, 2, 3, 3, 3]


def test_a_process_tree_includes_its_children(process_cpu: ModuleType) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert set(process_cpu.tree_cpu_seconds(os.getpid())) >= {os.getpid(), child.pid}
        assert set(process_cpu.tree_cpu_seconds(child.pid)) == {child.pid}
    finally:
        child.communicate(b"\n")
