"""Model FLOPs utilisation: hand-computed numbers, and cases without a utilisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orchestrator.capacity.accelerators import TABLE, accelerator_of
from orchestrator.capacity.flops import Pass, inference_flops, work_flops
from orchestrator.capacity.shape import FeedForward, GroupedAttention, ModelShape
from orchestrator.capacity.utilisation import Utilisation, accelerators_of, utilisation_of
from orchestrator.config.compose import compose
from orchestrator.errors import ConfigError
from orchestrator.training.cluster.placement import plan_placement
from orchestrator.training.learner.rows import TrainingRow, trained_on
from orchestrator.training.records import StepReport, TokenWork
from orchestrator.training.simulation.run import SimulationSettings, simulate
from orchestrator.training.telemetry.summary import summarise
from orchestrator.training.usage import Role
from tests.fakes.rollout_batches import random_part

GPUS = ["cluster=gpu_split", "price_book=aws", "model=qwen3_30b_a3b"]
SHAPE = ModelShape(
    family="llama",
    hidden=10,
    vocabulary=50,
    tied=True,
    attention=GroupedAttention(2, 1, 5, input_bias=False, output_bias=False, head_norms=False),
    layers=(FeedForward(20, 0, 0, 0, 0, bias=False),) * 3,
    context=100,
)
LINEAR = 3 * (2 * 300 + 2 * 600)
"""FLOPs of a token in three layers: projections 2 x 10 x 5 x (2 + 1) elements, feed-forward 3 x 10 x 20."""
PAIR = 3 * (2 * 2 * (5 + 5))
HEAD = 2 * 10 * 50


def test_operations_of_counted_tokens() -> None:
    assert work_flops(SHAPE, TokenWork(tokens=7, predicted=2, pairs=11)) == 7 * LINEAR + 11 * PAIR + 2 * HEAD
    rows = TokenWork(tokens=4 * 9, predicted=4, pairs=4 * 9 * 10 // 2)
    assert work_flops(SHAPE, rows) == inference_flops(SHAPE, Pass(36, 4, 9, recompute=False))


def test_a_step_of_the_simulation(tmp_path: Path) -> None:
    """10 tokens per rollout, 4 x 4 rollouts per step; the fakes count a pair per token."""
    settings = SimulationSettings(seed=3, steps=3, max_staleness=0, prompts_per_step=4)
    measured = Utilisation(SHAPE, {Role.LEARNER: 1e6, Role.ROLLOUT: 2e6})
    for report in simulate(settings, tmp_path).trace.reports:
        forward = 160 * (LINEAR + PAIR + HEAD)
        assert report.metrics["time/learn"] == pytest.approx(0.8)
        assert measured.metrics(report) == {
            "mfu/learner": pytest.approx(3 * forward / (0.8 * 1e6)),
            "mfu/rollout": pytest.approx(forward / (report.metrics["time/generate"] * 2e6)),
        }


def test_without_work_there_is_no_utilisation() -> None:
    measured = Utilisation(SHAPE, {Role.LEARNER: 1e6, Role.ROLLOUT: 2e6})
    assert measured.metrics(StepReport(0, {"accuracy/heldout": 0.5})) == {}
    idle = StepReport(1, {"time/learn": 1.0, "time/generate": 0.0}, sampled=TokenWork(1, 1, 1))
    assert measured.metrics(idle) == {}


def test_the_learners_rows_are_counted_at_their_own_length() -> None:
    def row(prompt: int, response: int) -> TrainingRow:
        return TrainingRow(
            np.zeros(prompt + response, dtype=np.int32),
            prompt,
            np.arange(response) > 0,
            np.zeros(response, dtype=np.float32),
            0,
            0.0,
            0.0,
        )

    assert trained_on([row(2, 3), row(4, 1)]) == TokenWork(10, 2, 15 + 15)
    assert trained_on([]) == TokenWork()


def test_a_prompt_is_read_once_per_group_and_the_last_token_never() -> None:
    part = random_part(0, groups=2, group_size=3)
    prompts = np.diff(part.rollouts.prompt_offsets).tolist()
    pairs = 0
    tokens = sum(prompts)
    for prompt in prompts:
        pairs += prompt * (prompt + 1) // 2
    for index, length in enumerate(part.rollouts.lengths.tolist()):
        positions = range(prompts[index // 3] + 1, prompts[index // 3] + length)
        tokens += len(positions)
        pairs += sum(positions)
    expected = TokenWork(tokens, int(part.rollouts.lengths.sum()), pairs)
    assert summarise(part.rollouts, part.scores).work == expected
    halves = [summarise(part.rollouts, part.scores, groups=[group]).work for group in (0, 1)]
    assert halves[0] + halves[1] == expected


@pytest.mark.slow
def test_peaks_come_from_the_datasheet_of_each_role() -> None:
    config = compose("grpo", [*GPUS, "learner.world_size=4", "rollout.workers=2"])
    found = utilisation_of(config)
    assert found is not None
    assert found.peaks == {Role.LEARNER: 4 * 989.4e12, Role.ROLLOUT: 2 * 989.4e12}
    h200 = utilisation_of(compose("grpo", [*GPUS, "cluster.sku=p5en.48xlarge", "model.dtype=float32"]))
    assert h200 is not None
    assert h200.peaks[Role.LEARNER] == 67e12 * config.learner.world_size / 4


@pytest.mark.parametrize("overrides", [[], [*GPUS, "cluster.sku=mystery"]], ids=["CPU slot", "unknown SKU"])
def test_without_a_published_peak_there_is_no_utilisation(overrides: list[str]) -> None:
    assert utilisation_of(compose("grpo", overrides)) is None


def test_replayed_solutions_do_not_count_as_sampled() -> None:
    found = utilisation_of(compose("sft", [*GPUS, "task=countdown"]))
    assert found is not None
    assert set(found.peaks) == {Role.LEARNER}


def test_a_shared_accelerator_counts_for_each_of_its_roles() -> None:
    shared = plan_placement(compose("grpo", ["cluster=gpu"]).cluster, 2, 1, 2)
    assert len(shared.slots) == 2
    assert [accelerators_of(shared, role) for role in (Role.LEARNER, Role.ROLLOUT)] == [2, 2]


@pytest.mark.parametrize(("old", "new"), [("peak: published", "peak: guessed"), ("    peak: measured\n", "")])
def test_a_table_must_name_the_source_of_a_peak(old: str, new: str, tmp_path: Path) -> None:
    table = tmp_path / "mine.yaml"
    text = TABLE.read_text()
    assert old in text
    table.write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        accelerator_of("cpu-slot", table)
    assert caught.value.key == "accelerators"
