"""The timeline of simulated runs: the real loop's spans and step times, explained from their files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.timeline.explanation import account
from orchestrator.runs.timeline.view import Timeline, read_timeline
from orchestrator.training.records import BlockRef, StepReport
from orchestrator.training.simulation.run import SimulationSettings, Trace, assemble
from orchestrator.training.simulation.stages import SimulatedBlock, SimulatedRolloutWorker, Timing
from orchestrator.training.simulation.virtual_time import VirtualClock, run_in_virtual_time
from orchestrator.training.stages import Generated, PublishedWeights, RolloutRequest
from orchestrator.training.usage import MemorySink, SpanRecorded, event_to_json

SECOND = 1_000_000_000
STEPS = 12


class WrittenTrace(Trace):
    """Also writes metrics.jsonl, as the observer of a run does."""

    run: RunDirectory

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        self.run.append_metrics(report.step, report.metrics, self.clock.now_ns())


def simulated(path: Path, settings: SimulationSettings) -> Timeline:
    run, sink = RunDirectory(path), MemorySink()
    run.create()
    run.write_config(
        f"max_staleness: {settings.max_staleness}\n"
        f"rollout: {{prompts_per_step: {settings.prompts_per_step}}}\n"
        f"algorithm: {{dynamic_sampling: {str(settings.dynamic_sampling).lower()}}}\n"
    )

    async def main() -> None:
        clock = VirtualClock()
        trace = WrittenTrace(clock)
        trace.run = run
        simulation = assemble(settings, run.path, clock, observer=trace, sink=sink)
        await simulation.loop.run()
        await asyncio.gather(simulation.rollouts.close(), simulation.rewards.close())

    run_in_virtual_time(main())
    for event in sink.events:
        assert isinstance(event, SpanRecorded)
        with (run.ledger / f"1-{event.actor}-0.jsonl").open("a") as file:
            file.write(event_to_json(event) + "\n")
    return read_timeline(run)


def settings(max_staleness: int, timing: Timing, **changes: object) -> SimulationSettings:
    values: dict[str, object] = {"seed": 3, "steps": STEPS, "checkpoint_every": 0} | changes
    return SimulationSettings(max_staleness=max_staleness, timing=timing, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("max_staleness", [0, 1, 4])
@pytest.mark.parametrize("dynamic_sampling", [False, True])
@pytest.mark.parametrize("evaluate_every", [0, 3])
def test_every_step_is_explained_completely(
    tmp_path: Path, max_staleness: int, dynamic_sampling: bool, evaluate_every: int
) -> None:
    timeline = simulated(
        tmp_path / "run",
        settings(max_staleness, Timing(), dynamic_sampling=dynamic_sampling, evaluate_every=evaluate_every),
    )
    assert [window.step for window in timeline.windows] == list(range(1, STEPS + 1))
    for window in timeline.windows:
        path = timeline.path(window)
        assert sum(segment.ns for segment in path) == window.ns
        # In virtual time the controller needs none: every nanosecond is an actor's.
        assert {segment.role for segment in path} <= {"rollout", "reward", "learner"}


def test_the_learner_of_a_synchronous_run_waits_as_long_as_the_loop_says(tmp_path: Path) -> None:
    timeline = simulated(tmp_path / "run", settings(0, Timing(generate=2.0), reward_workers=4))
    for window in timeline.windows:
        found = account(window, timeline.path(window), timeline.within(window.start_ns, window.end_ns))
        assert set(found.waits_ns) == {"generate", "score"}
        assert window.waited_ns is not None
        assert sum(found.waits_ns.values()) == pytest.approx(window.waited_ns, abs=10)
        longest = max(
            (span for span in timeline.spans if span.step == window.step - 1 and span.role == "rollout"),
            key=lambda span: span.end_ns,
        )
        assert found.waited_for["generate"] == longest.actor
        assert found.waits_ns["generate"] == pytest.approx(longest.end_ns - longest.start_ns, abs=10)


def test_in_an_asynchronous_run_the_slower_side_is_the_bottleneck(tmp_path: Path) -> None:
    slow_learner = simulated(tmp_path / "learner", settings(4, Timing(generate=0.5, update=3.0)))
    assert "the learner worked" in slow_learner.explain(slow_learner.windows[4:])
    assert "bottleneck" in slow_learner.explain(slow_learner.windows[4:])
    slow_rollouts = simulated(tmp_path / "rollouts", settings(4, Timing(generate=6.0, update=0.5)))
    assert "for the longest rollout" in slow_rollouts.explain(slow_rollouts.windows[4:])


def test_the_estimate_is_an_upper_bound_of_what_one_more_worker_saves(tmp_path: Path) -> None:
    """The simulated workers need the same time for every request, however many groups it has: the case in
    which dividing the prompts further saves nothing.
    """
    before = simulated(tmp_path / "two", settings(0, Timing(generate=2.0), rollout_workers=2))
    after = simulated(tmp_path / "three", settings(0, Timing(generate=2.0), rollout_workers=3))
    took = [sum(window.ns for window in timeline.windows) / STEPS / SECOND for timeline in (before, after)]
    text = before.explain(before.windows)
    saved = float(text.partition("save at most ")[2].partition(" s ")[0])
    assert took[0] - took[1] <= saved


@pytest.mark.parametrize("max_staleness", [0, 4])
def test_the_estimate_is_exact_where_its_assumptions_hold(
    max_staleness: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every group takes a quarter of a second, and the learner much less than the workers."""

    async def proportional(
        self: SimulatedRolloutWorker, request: RolloutRequest, weights: PublishedWeights
    ) -> AsyncGenerator[Generated]:
        with self._meter.span(request.activity, request.step) as measure:  # pyright: ignore[reportPrivateUsage]
            await asyncio.sleep(0.25 * len(request.groups))
            measure.tokens = len(request.groups)
        spans = self._meter.take()  # pyright: ignore[reportPrivateUsage]
        yield Generated(request, BlockRef(SimulatedBlock(weights.version)), len(request.groups), spans)

    monkeypatch.setattr(SimulatedRolloutWorker, "generate", proportional)
    quick = Timing(score=0.001, update=0.01, publish=0.001)
    both = [
        simulated(tmp_path / str(workers), settings(max_staleness, quick, rollout_workers=workers, steps=40))
        for workers in (2, 3)
    ]
    # The last 20 steps but for the last ones, of which no more prompts are requested.
    before, after = (timeline.windows[20:34] for timeline in both)
    seconds = [sum(window.ns for window in windows) / len(windows) / SECOND for windows in (before, after)]
    text = both[0].explain(before)
    saved = float(text.partition("save at most ")[2].partition(" s ")[0])
    assert seconds[0] - seconds[1] == pytest.approx(saved, rel=0.1)
