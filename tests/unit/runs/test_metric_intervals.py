from pathlib import Path

import pytest

from orchestrator.clock import FakeClock
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.metric_intervals import band_of, interval_of
from orchestrator.runs.status import status_document
from orchestrator.training.events import TrainingWarning, event_fields


@pytest.mark.parametrize(
    ("metric", "size"),
    [
        ("accuracy/heldout", "accuracy/heldout_n"),
        ("accuracy/train", "accuracy/train_n"),
        ("rollout/reflection_fraction", "rollout/reflection_n"),
        ("rollout/truncated_fraction", "rollout/truncated_n"),
        ("heldout/truncated_fraction", "heldout/count"),
        ("eval/pass_at_8", "heldout/count"),
        ("eval/maj_at_8", "heldout/count"),
    ],
)
def test_every_share_has_an_interval(metric: str, size: str) -> None:
    interval = interval_of(metric, {metric: 44 / 256, size: 256})
    assert interval is not None
    assert [round(100 * bound, 1) for bound in interval] == [13.1, 22.3]
    assert interval_of(metric, {metric: 44 / 256}) is None
    assert interval_of(metric, {size: 256}) is None


def test_other_metrics_have_none() -> None:
    assert interval_of("reward/mean", {"reward/mean": 0.5, "heldout/count": 256}) is None


def test_a_band_covers_the_steps_with_a_sample_size() -> None:
    history = {"accuracy/heldout": [(0, 0.0), (10, 0.5), (20, 1.0)], "accuracy/heldout_n": [(10, 4), (20, 4)]}
    steps = [
        (step, round(low, 2), round(high, 2)) for step, low, high in band_of("accuracy/heldout", history)
    ]
    assert steps == [(10, 0.15, 0.85), (20, 0.51, 1.0)]


def test_status_has_intervals_and_warnings(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create()
    run.begin(job="grpo", purpose="debug", steps=10, at_ns=0)
    run.append_metrics(1, {"accuracy/train": 0.5, "accuracy/train_n": 16.0, "reward/mean": 1.0}, 5)
    warning = TrainingWarning(3, "no_answers", "No rollout has an answer.", "Look at the template.")
    run.append_event(warning.kind, event_fields(warning), FakeClock().now_ns())
    run.append_event("restored", {"step": 0}, 6)
    document = status_document(run)
    assert list(document["intervals"]) == ["accuracy/train"]
    assert [round(bound, 2) for bound in document["intervals"]["accuracy/train"]] == [0.28, 0.72]
    assert document["warnings"] == [
        {
            "step": 3,
            "problem": "no_answers",
            "what": "No rollout has an answer.",
            "check": "Look at the template.",
        }
    ]
