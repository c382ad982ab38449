"""Draws the learning curve of a run, or of a pipeline's stages, from their directories."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.files import write_atomically
from orchestrator.runs.metric_intervals import band_of
from orchestrator.runs.status import history as metric_history
from orchestrator.training.manifest import RunFacts
from orchestrator.training.telemetry.curve_layout import Series, StageCurve


def write_learning_curve(runs: Sequence[RunDirectory], path: Path) -> bool:
    """Draw the runs one after another into the PNG `path`. Returns False, without writing a file, if none
    of them has metrics yet.

    Raises OSError if the file cannot be written.
    """
    from orchestrator.training.telemetry.curve import learning_curve_png

    facts = [read_facts(run) for run in runs]
    curves = [
        stage_curve(run_name(run), metric_history(run), known.plays_back)
        for run, known in zip(runs, facts, strict=True)
    ]
    curves = [curve for curve in curves if curve.heldout or curve.train]
    if not curves:
        return False
    write_atomically(path, learning_curve_png(curves, facts[-1].title))
    return True


def stage_curve(name: str, history: Mapping[str, Series], playback: bool) -> StageCurve:
    """The curve of one stage. In a stage that plays back worked solutions (a cold start), the rollouts are
    not the model's own, so only the evaluations are shown.
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


def read_manifest(run: RunDirectory) -> dict[str, Any]:
    """The run's manifest; empty if it has none yet."""
    if not run.manifest.exists():
        return {}
    return json.loads(run.manifest.read_text(encoding="utf-8"))


def read_facts(run: RunDirectory) -> RunFacts:
    """The facts in the run's manifest; empty if it has no manifest."""
    return RunFacts.from_manifest(read_manifest(run))


def run_name(run: RunDirectory) -> str:
    """The label of a run: the name of its stage, or of its job."""
    record = run.record()
    return (record.stage or record.job).replace("_", " ")
