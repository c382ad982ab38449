"""The contract of the Tracker port, which runs on every implementation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from orchestrator.training.telemetry.tracker import MetricRow, RunIdentity, Tracker

IDENTITY = RunIdentity("grpo-17", "grpo", "final", "reasoning", "r1", tags={"model": "tiny_moe"})


class TrackerUnderTest(ABC):
    """A tracking system, and the data that it has about the run `grpo-17`."""

    @abstractmethod
    def new(self) -> Tracker: ...
    @abstractmethod
    def history(self, name: str) -> list[tuple[int, float]]: ...
    @abstractmethod
    def params(self) -> dict[str, str]: ...
    @abstractmethod
    def tags(self) -> dict[str, str]: ...
    @abstractmethod
    def artifacts(self) -> dict[str, bytes]: ...
    @abstractmethod
    def rollouts(self, step: int) -> list[dict[str, object]]: ...
    @abstractmethod
    def outcome(self) -> str | None: ...


class TrackerContract:
    """Subclass it with a fixture `under_test`."""

    def test_a_whole_run(self, under_test: TrackerUnderTest, tmp_path: Path) -> None:
        picture = tmp_path / "curve.png"
        picture.write_bytes(b"png")
        tracker = under_test.new()
        tracker.start(IDENTITY)
        tracker.log_params({"seed": 3, "learner": {"zero_stage": 1}})
        tracker.log_metrics(0, {"accuracy/heldout": 0.25})
        tracker.log_rows(
            [
                MetricRow(1, 5_000_000_000, {"reward/mean": 0.5}),
                MetricRow(2, 6_000_000_000, {"reward/mean": 0.75}),
            ]
        )
        tracker.log_rollouts(2, [{"prompt": "1+2=", "reward": 1.0}, {"prompt": "5-5=", "reward": 0.0}])
        tracker.log_artifact(picture, "plots")
        tracker.log_artifact(picture)
        tracker.set_tag("note", "first")
        tracker.set_tag("note", "second")
        tracker.finish("done")

        assert under_test.history("reward/mean") == [(1, 0.5), (2, 0.75)]
        assert under_test.history("accuracy/heldout") == [(0, 0.25)]
        assert under_test.params() == {"seed": "3", "learner.zero_stage": "1"}
        assert under_test.artifacts() == {"plots/curve.png": b"png", "curve.png": b"png"}
        assert under_test.rollouts(2)[1] == {"prompt": "5-5=", "reward": 0.0}
        assert under_test.tags().items() >= {"model": "tiny_moe", "note": "second"}.items()
        assert under_test.outcome() == "done"

    def test_a_resumed_run_continues_without_repeated_steps(self, under_test: TrackerUnderTest) -> None:
        first = under_test.new()
        first.start(IDENTITY)
        first.log_params({"steps": 10})
        for step in (1, 2, 3):
            first.log_metrics(step, {"policy/loss": float(step)})
        first.finish("drained")

        again = under_test.new()
        again.start(IDENTITY)
        again.log_params({"steps": 12, "added": True})
        for step in (3, 4):
            again.log_metrics(step, {"policy/loss": 10.0 * step, "policy/kl": 0.1})
        again.finish("done")

        assert under_test.history("policy/loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
        assert under_test.history("policy/kl") == [(3, 0.1), (4, 0.1)]
        assert under_test.params() == {"steps": "10", "added": "True"}
        assert under_test.outcome() == "done"

    def test_a_step_that_is_logged_again_has_no_effect(self, under_test: TrackerUnderTest) -> None:
        tracker = under_test.new()
        tracker.start(IDENTITY)
        for step, loss in ((1, 1.0), (2, 2.0), (2, 2.5), (3, 3.0)):
            tracker.log_metrics(step, {"policy/loss": loss})
        tracker.finish("done")
        assert under_test.history("policy/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]

    def test_a_replay_only_adds_missing_steps(self, under_test: TrackerUnderTest) -> None:
        """Step 4 was never sent, because the run was killed first."""
        first = under_test.new()
        first.start(IDENTITY)
        for step in (1, 2, 3, 5):
            first.log_metrics(step, {"policy/loss": float(step)})
        first.finish("failed")

        again = under_test.new()
        again.start(IDENTITY)
        everything = [MetricRow(step, 1_000, {"policy/loss": 10.0 * step}) for step in range(1, 7)]
        again.log_rows(everything)
        again.log_rows(everything)
        again.finish("done")
        assert under_test.history("policy/loss") == [
            (1, 1.0),
            (2, 2.0),
            (3, 3.0),
            (4, 40.0),
            (5, 5.0),
            (6, 60.0),
        ]

    def test_names_are_converted_to_accepted_characters(self, under_test: TrackerUnderTest) -> None:
        tracker = under_test.new()
        tracker.start(IDENTITY)
        tracker.log_metrics(1, {"reward/pass@4": 0.5, "reward/a,b": 1.0, "reward/mean": 0.25})
        tracker.finish("failed")
        assert under_test.history("reward/pass_at_4") == [(1, 0.5)]
        assert under_test.history("reward/a_b") == [(1, 1.0)]
        assert under_test.history("reward/mean") == [(1, 0.25)]
        assert under_test.outcome() == "failed"
