"""Reads the data of a report from the directory of a run or the directories of a pipeline's stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.console.gantt import MOST_STEPS, GanttData, readable
from orchestrator.console.report import render_report
from orchestrator.console.report_data import ReportData, Sample, SamplePair, Samples, StageData, Transitions
from orchestrator.console.run_curves import read_facts, read_manifest, run_name
from orchestrator.runs import status as runs
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.files import write_atomically
from orchestrator.runs.record import RunRecord
from orchestrator.runs.timeline.view import RECENT_STEPS, Timeline, read_timeline
from orchestrator.training.manifest import RunFacts
from orchestrator.training.records import RecordKind
from orchestrator.training.telemetry.recorder import read_recorded, recorded_steps

SHOWN = ((False, True, 3), (True, True, 1), (False, False, 1), (True, False, 1))
"""(correct before, correct after, number of pairs to show): examples of what was learned and what was not."""
UNPAIRED = 4
MOST_CHARACTERS = 4000


def write_report(run: RunDirectory, cost: Mapping[str, Any] | None) -> None:
    """Write report.html into the run's directory. `cost` is the JSON of `orchestrator cost report`.

    Raises RunNotFoundError if the directory holds no run, OSError if the file cannot be written.
    """
    write_atomically(run.report, render_report(read_report(run, cost)))


def read_report(run: RunDirectory, cost: Mapping[str, Any] | None) -> ReportData:
    """Read the data for the report of `run`. Raises RunNotFoundError if the directory holds no run."""
    record = runs.observe(run)
    stages = _stage_directories(run, record)
    main = stages[-1] if stages else run
    facts, manifest = read_facts(main), read_manifest(run)
    return ReportData(
        run_id=record.run_id,
        job=record.job,
        title=facts.title,
        purpose=record.purpose,
        state=record.state.value,
        why=record.why,
        started_ns=record.started_ns,
        ended_ns=record.ended_ns,
        stages=tuple(_stage(stage) for stage in stages),
        samples=_samples(main, facts, [run_name(stage) for stage in stages[:-1]]),
        cost=cost,
        facts=_facts(facts, manifest),
        weights=str(main.model) if main.model.exists() else None,
        reflection_pattern=facts.reflection_pattern,
        config=run.config.read_text(encoding="utf-8") if run.config.exists() else "",
        manifest=manifest,
    )


def _stage_directories(run: RunDirectory, record: RunRecord) -> list[RunDirectory]:
    """The stages that were started, or the run itself if it is not a pipeline."""
    if not record.stages:
        return [run]
    started = [run.stage_run(stage.run_id) for stage in record.stages if stage.run_id]
    return [stage for stage in started if stage.state.exists()]


def _stage(run: RunDirectory) -> StageData:
    record = runs.observe(run)
    timeline = read_timeline(run, RECENT_STEPS)
    return StageData(
        name=run_name(run),
        run_id=record.run_id,
        job=record.job,
        state=record.state.value,
        steps=record.steps,
        started_ns=record.started_ns,
        ended_ns=record.ended_ns,
        history=runs.history(run),
        playback=read_facts(run).plays_back,
        warnings=tuple(run.read_events("training_warning")),
        routing={layer: list(steps.items()) for layer, steps in run.read_routing().items()},
        gantt=_gantt(timeline),
        bottleneck=timeline.explain(timeline.windows) if timeline.windows else "",
    )


def _gantt(timeline: Timeline) -> GanttData | None:
    """The newest steps of a run, with their spans and critical paths."""
    windows = timeline.windows[-MOST_STEPS:]
    spans = timeline.within(windows[0].start_ns, windows[-1].end_ns) if windows else ()
    if not spans:
        return None
    path = tuple(segment for window in windows for segment in timeline.path(window))
    return readable(GanttData(windows, tuple(spans), path))


def _samples(run: RunDirectory, facts: RunFacts, earlier: Sequence[str]) -> Samples | None:
    """Held-out answers of the first and the last evaluation; without evaluations, rollouts of the first and
    the last recorded step.
    """
    directory = run.evaluations
    kind: RecordKind = "heldout"
    if len(recorded_steps(directory, kind)) < 2 and not facts.plays_back:
        directory, kind = run.rollouts, "step"
    steps = recorded_steps(directory, kind)
    if len(steps) < 2:
        return None
    before = [_sample(row) for row in read_recorded(directory, steps[0], kind)]
    after = [_sample(row) for row in read_recorded(directory, steps[-1], kind)]
    pairs, transitions = _compare(before, after) if kind == "heldout" else (_beside(before, after), None)
    return Samples(_when(steps[0], earlier), _when(steps[-1], earlier), pairs, transitions)


def _beside(before: Sequence[Sample], after: Sequence[Sample]) -> tuple[SamplePair, ...]:
    """Pairs of rollouts from two steps whose prompts differ."""
    return tuple(SamplePair(*pair) for pair in zip(before[:UNPAIRED], after[:UNPAIRED], strict=False))


def _compare(before: Sequence[Sample], after: Sequence[Sample]) -> tuple[tuple[SamplePair, ...], Transitions]:
    """Compare the answers to the same prompts before and after: some pairs to show, and
    the number of each kind.
    """
    answered = {sample.prompt_id: sample for sample in before}
    pairs = [
        SamplePair(answered[sample.prompt_id], sample) for sample in after if sample.prompt_id in answered
    ]
    kinds: dict[tuple[bool | None, bool | None], list[SamplePair]] = {}
    for pair in pairs:
        kinds.setdefault((pair.before.right, pair.after.right), []).append(pair)
    for found in kinds.values():
        found.sort(key=lambda pair: not pair.after.reflected)
    shown = [pair for was, now, count in SHOWN for pair in kinds.get((was, now), [])[:count]]
    transitions = Transitions(
        right_right=len(kinds.get((True, True), ())),
        wrong_right=len(kinds.get((False, True), ())),
        right_wrong=len(kinds.get((True, False), ())),
        wrong_wrong=len(kinds.get((False, False), ())),
    )
    return tuple(shown), transitions


def _sample(row: Mapping[str, Any]) -> Sample:
    accuracy = row["accuracy"]
    reason = row["reason"]
    if not reason and row["finish"] == "length":
        reason = f"cut off after {row['length']} tokens"
    return Sample(
        prompt_id=row["prompt_id"],
        prompt=_shortened(row["prompt"]),
        response=_shortened(row["response"]),
        right=None if accuracy is None else accuracy >= 1.0,
        reward=row["reward"],
        reflected=row["reflected"],
        reason=reason,
    )


def _shortened(text: str) -> str:
    left_out = len(text) - MOST_CHARACTERS
    if left_out <= 0:
        return text
    half = MOST_CHARACTERS // 2
    return f"{text[:half]}\n[... {left_out:,} characters left out ...]\n{text[-half:]}"


def _when(step: int, earlier: Sequence[str]) -> str:
    if step:
        return f"after step {step}"
    return f"after {earlier[-1]}" if earlier else "before the first step"


def _facts(facts: RunFacts, manifest: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The facts that determine the result of a run. Unknown facts are left out."""
    git, machine = manifest.get("git") or {}, manifest.get("machine") or {}
    known = list(facts.settings)
    if machine:
        known.append(("machine", f"{machine['cpus']} CPUs, {machine['processor']}"))
    if git:
        changed = " with uncommitted changes" if git.get("uncommitted_changes") else ""
        known.append(("code", f"{git['commit'][:12]}{changed}"))
    return tuple(known)
