import struct
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.console.run_curves import stage_curve, write_learning_curve
from orchestrator.runs.directory import RunDirectory
from orchestrator.training.telemetry.curve import learning_curve_png, seeds_png
from orchestrator.training.telemetry.curve_layout import (
    EARLIER_STAGES,
    StageCurve,
    layout,
    nice_steps,
    smooth,
    spread,
    thin,
)

HISTORY = {
    "accuracy/heldout": [(0, 0.25), (10, 0.5)],
    "accuracy/train": [(1, 0.2), (10, 0.4)],
    "rollout/reflection_fraction": [(1, 0.6), (10, 0.6)],
    "heldout/reflection_fraction": [(0, 0.1), (10, 0.3)],
}


def size(png: bytes) -> tuple[int, ...]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", png[16:24])


def test_the_picture_is_large_enough_for_slides() -> None:
    stages = [StageCurve("cold start", [(0, 0.0), (600, 0.3)]), stage_curve("grpo", HISTORY, playback=False)]
    assert size(learning_curve_png(stages, "tiny_moe learns countdown")) == (2400, 1400)


def test_seeds_without_measurements_are_drawn_without_a_curve() -> None:
    png = seeds_png({"seed 0": HISTORY["accuracy/heldout"], "seed 1": []}, "Held-out accuracy", target=0.85)
    assert size(png) == (2400, 1400)


def test_the_last_stage_gets_most_of_the_axis() -> None:
    stages = [StageCurve("sft", [(0, 0.0), (1600, 0.3)]), StageCurve("grpo", HISTORY["accuracy/heldout"])]
    sft, grpo = layout(stages)
    assert (sft.left, sft.width) == (0.0, EARLIER_STAGES)
    assert grpo.left + grpo.width == pytest.approx(1.0)
    assert sft.x(1600) == grpo.x(0)
    assert grpo.x(10) == pytest.approx(1.0)
    assert [text for _, text in sft.ticks(5, is_last=False)] == ["step 0"]
    assert [text for _, text in grpo.ticks(5, is_last=True)] == ["step 0", "2", "4", "6", "8", "10"]


def test_a_curve_without_measurements_is_an_empty_picture() -> None:
    assert layout([]) == []
    assert size(learning_curve_png([], "empty")) == (2400, 1400)


@given(st.lists(st.floats(0, 1), max_size=5))
def test_labels_keep_their_order_and_their_distance(heights: list[float]) -> None:
    placed = spread(heights, 0.08, 0.0, 1.0)
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    ranked = [placed[index] for index in order]
    assert all(after - before >= 0.08 - 1e-3 for before, after in pairwise(ranked))
    assert all(-1e-9 <= height <= 1 + 1e-9 for height in placed)


@given(st.integers(1, 10**6), st.integers(1, 8))
def test_ticks_are_few_round_and_within_the_axis(last: int, count: int) -> None:
    marks = nice_steps(last, count)
    assert marks[0] == 0
    assert marks[-1] <= last
    assert len(marks) <= count + 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=500))
def test_smoothing_and_thinning_stay_within_the_values(values: list[float]) -> None:
    series = list(enumerate(values))
    for drawn in (smooth(series), thin(series, 50)):
        assert min(values) - 1e-9 <= min(value for _, value in drawn)
        assert max(value for _, value in drawn) <= max(values) + 1e-9
    assert [step for step, _ in smooth(series)] == [step for step, _ in series]
    assert len(thin(series, 50)) <= 50
    assert thin(series, 50)[-1] == series[-1]


def test_a_cold_start_only_shows_held_out_accuracy() -> None:
    played = stage_curve("cold start", HISTORY, playback=True)
    assert played.train == ()
    assert played.reflection == HISTORY["heldout/reflection_fraction"]
    assert stage_curve("grpo", HISTORY, playback=False).reflection == HISTORY["rollout/reflection_fraction"]


def test_a_curve_from_run_directories(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "grpo-1")
    run.create()
    run.begin(job="grpo", purpose="debug", steps=2, at_ns=1)
    picture = tmp_path / "curve.png"
    assert not write_learning_curve([run], picture)
    assert not picture.exists()
    run.append_metrics(0, {"accuracy/heldout": 0.25}, 2)
    run.append_metrics(1, {"accuracy/train": 0.5, "policy/loss": float("nan")}, 3)
    assert write_learning_curve([run], picture)
    assert size(picture.read_bytes()) == (2400, 1400)
