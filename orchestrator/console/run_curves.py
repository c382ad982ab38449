"""The learning curve of a run, or of the stages of a pipeline, from their directories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import ConfigError
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.files import write_atomically
from orchestrator.runs.intervals import band_of
from orchestrator.training.rollouts.engines import ENGINES
from orchestrator.training.telemetry.curve_layout import Series, StageCurve


def write_learning_curve(runs: Sequence[RunDirectory], path: Path) -> bool:
    """Draw the runs, one after another, into the PNG `path`; False, and no file, if none of them has
    measured anything yet.

    Raises OSError if the disk refuses the file.
    """
    from orchestrator.training.telemetry.curve import learning_curve_png

    configs = [read_config(run) for run in runs]
    curves = [
        stage_curve(run_name(run), read_history(run), plays_back(config))
        for run, config in zip(runs, configs, strict=True)
    ]
    curves = [curve for curve in curves if curve.heldout or curve.train]
    if not curves:
        return False
    write_atomically(path, learning_curve_png(curves, title(configs[-1])))
    return True


def stage_curve(name: str, history: Mapping[str, Series], playback: bool) -> StageCurve:
    """The curve of one stage. Where worked solutions are played back (a cold start) the sampled rollouts are
    not the model's own: only the evaluations speak of it.
    """
    train = () if playback else history.get("accuracy/train", ())
    reflection = "heldout/reflection_fraction" if playback else "rollout/reflection_fraction"
    return StageCurve(
        name,
        heldout=history.get("accuracy/heldout", ()),
        train=train,
        reflection=history.get(reflection, ()),
        heldout_band=band_of("accuracy/heldout", history),
    )


def read_history(run: RunDirectory) -> dict[str, list[tuple[int, float]]]:
    """Every metric's course. Where a step was written twice, as after a resume, the later value counts."""
    courses: dict[str, dict[int, float]] = {}
    for line in run.read_metrics():
        for name, value in line.metrics.items():
            courses.setdefault(name, {})[line.step] = value
    return {name: sorted(course.items()) for name, course in courses.items()}


def read_config(run: RunDirectory) -> dict[str, Any]:
    """The resolved config as plain values; empty if there is none."""
    if not run.config.exists():
        return {}
    return yaml.safe_load(run.config.read_text(encoding="utf-8")) or {}


def run_name(run: RunDirectory) -> str:
    """What a stage is called among the others: its name, or the job's."""
    record = run.record()
    return (record.stage or record.job).replace("_", " ")


def plays_back(config: Mapping[str, Any]) -> bool:
    """Whether the run's rollouts are worked solutions instead of the model's own. A run of an engine that is
    not installed here counts as sampled.
    """
    try:
        return ENGINES.facts(config.get("rollout", {}).get("engine", "")).replays_solutions
    except ConfigError:
        return False


def title(config: Mapping[str, Any]) -> str:
    """`tiny_moe on countdown`."""
    model, task = config.get("model", {}).get("name"), config.get("task", {}).get("name")
    return f"{model} on {task}" if model and task else "Learning curve"
