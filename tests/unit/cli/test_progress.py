from collections.abc import Iterator
from decimal import Decimal
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cli.progress import Progress, WatchedRun, watch
from orchestrator.clock import FakeClock
from orchestrator.errors import RunNotFoundError
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.record import RunState, WaitRecord
from orchestrator.training.records import StepReport

SECOND = 1_000_000_000


def pipe() -> Console:
    return Console(file=StringIO(), width=40)


def terminal() -> Console:
    return Console(file=StringIO(), width=100, force_terminal=True, color_system=None)


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_a_pipe_gets_one_line_now_and_then() -> None:
    console, clock = pipe(), FakeClock()
    with Progress("grpo", 100, console, "USD", line_every_seconds=10, clock=clock) as progress:
        for step in range(1, 101):
            clock.advance(SECOND)
            metrics = {"reward/mean": 0.5} | ({"accuracy/heldout": 0.25} if step == 5 else {})
            progress.update(StepReport(step, metrics), Decimal("1.5"))
    shown = [line.split("  ")[1] for line in lines(console)]
    assert shown == [
        "step 1/100",
        "step 5/100",  # an evaluation
        *(f"step {step}/100" for step in range(15, 100, 10)),
        "step 100/100",
    ]
    assert all(line.startswith("grpo  step") and "1.50 USD" in line for line in lines(console))


def test_a_pipe_gets_each_message_as_one_line() -> None:
    console = pipe()
    with Progress("grpo", 10, console, "USD", clock=FakeClock()) as progress:
        progress.message("worker [rollout-1] was lost: killed; its groups went to others")
    assert lines(console) == ["grpo  worker [rollout-1] was lost: killed; its groups went to others"]


def test_a_terminal_keeps_the_last_frame() -> None:
    console = terminal()
    with Progress("grpo", 2, console, "USD", clock=FakeClock()) as progress:
        progress.update(StepReport(1, {"accuracy/heldout": 0.25}), None)
        progress.message("checkpoint at step 1")
        progress.update(StepReport(2, {"accuracy/heldout": 0.75}), Decimal("0.01"))
    text = "\n".join(lines(console))
    assert "done" in text
    assert "step 2/2" in text
    assert "0.25 → 0.75" in text
    assert "checkpoint at step 1" in text


def test_a_run_that_raises_is_not_shown_as_done() -> None:
    console = terminal()
    progress = Progress("grpo", 2, console, "USD", clock=FakeClock())
    with pytest.raises(ZeroDivisionError), progress:
        raise ZeroDivisionError
    assert progress.snapshot.state == "stopped"


@pytest.fixture
def pipeline(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "r1-1")
    run.create()
    run.begin(job="r1", purpose="final", steps=0, at_ns=1 * SECOND, stages=("sft", "grpo"))
    return run


def start_stage(pipeline: RunDirectory, name: str) -> RunDirectory:
    stage = RunDirectory(pipeline.path.parent / f"{pipeline.run_id}-{name}")
    stage.create()
    stage.begin(job=name, purpose="final", steps=2, at_ns=2 * SECOND, pipeline=pipeline.run_id, stage=name)
    pipeline.add_stage(name, stage.run_id)
    return stage


def history(pipeline: RunDirectory) -> Iterator[None]:
    """Changes of the pipeline between two updates of the view."""
    sft = start_stage(pipeline, "sft")
    yield
    sft.append_metrics(1, {"policy/loss": 2.0}, 3 * SECOND)
    yield
    sft.append_metrics(2, {"policy/loss": 1.0}, 4 * SECOND)
    sft.write_state(RunState.DONE, "", 4 * SECOND)
    grpo = start_stage(pipeline, "grpo")
    grpo.append_metrics(1, {"accuracy/heldout": 0.5, "cost/usd": 0.25}, 5 * SECOND)
    yield
    grpo.write_state(RunState.BUDGET, "the budget is spent", 6 * SECOND)
    pipeline.write_state(RunState.BUDGET, "the budget is spent", 6 * SECOND)
    yield


def test_watching_a_pipeline_follows_its_stages_to_the_end(pipeline: RunDirectory) -> None:
    console, story = pipe(), history(pipeline)
    assert watch(pipeline, console, "USD", sleep=lambda _: next(story)) == "budget"
    shown = [" ".join(line.split()[:5]) for line in lines(console)]
    assert shown == [
        "r1-1 · sft step 0/2",
        "r1-1 · sft step 1/2",
        "r1-1 · sft step 2/2",
        "r1-1 · grpo step 1/2",
    ]
    assert "0.25 USD" in lines(console)[-1]


def test_watching_on_a_terminal_keeps_finished_stages_in_view(pipeline: RunDirectory) -> None:
    console, story = terminal(), history(pipeline)
    watch(pipeline, console, "USD", sleep=lambda _: next(story))
    last_frame = "\n".join(lines(console)[-8:])
    assert "step 1/2" in last_frame
    assert "the budget is spent" in last_frame
    assert any("r1-1 · sft  step 2/2" in line for line in lines(console))


def test_watching_without_a_run_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError):
        watch(RunDirectory(tmp_path / "missing"), pipe(), "USD")


def test_watching_says_what_the_run_waits_for_and_when_that_is_over(pipeline: RunDirectory) -> None:
    text = "waiting for rollout-1 to sample rollouts since 12:00:00 UTC"
    wait = WaitRecord("generate", "rollout-1", 5 * SECOND, 3.0, text)

    def story() -> Iterator[None]:
        stage = start_stage(pipeline, "grpo")
        yield
        stage.write_waiting((wait,))
        yield
        stage.write_waiting(())
        yield
        pipeline.write_state(RunState.DONE, "", 6 * SECOND)
        yield

    console, happens = pipe(), story()
    watch(pipeline, console, "USD", sleep=lambda _: next(happens))
    assert [text in line for line in lines(console)] == [False, True, False]


def test_the_live_view_of_a_watched_run_shows_what_it_waits_for(pipeline: RunDirectory) -> None:
    text = "waiting for rollout-1 to sample rollouts since 12:00:00 UTC"
    stage = start_stage(pipeline, "grpo")
    stage.write_waiting((WaitRecord("generate", "rollout-1", 5 * SECOND, 3.0, text),))
    console = terminal()
    watched = WatchedRun(pipeline, "USD")
    watched.refresh()
    console.print(watched.render(6 * SECOND, console.width))
    assert any(text in line for line in lines(console))
