"""The data of a report, as frozen records that `report_reader` reads and `report` renders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.confidence_intervals import Interval
from orchestrator.console.gantt import GanttData
from orchestrator.console.heat_map import LoadSeries
from orchestrator.runs.metric_intervals import interval_of
from orchestrator.training.telemetry.curve_layout import Series


@dataclass(frozen=True, slots=True)
class StageData:
    """One training run of the report: a stage of a pipeline, or the run itself. `ended_ns` is
    None while it runs.
    """

    name: str
    run_id: str
    job: str
    state: str
    steps: int
    started_ns: int
    ended_ns: int | None
    history: Mapping[str, Series]
    playback: bool
    """Whether the rollouts are worked solutions instead of the model's own samples."""
    routing: Mapping[int, LoadSeries] = field(default_factory=dict[int, LoadSeries])
    """Expert loads by layer; empty for a dense model."""
    warnings: tuple[Mapping[str, Any], ...] = ()
    """The fields of its `TrainingWarning` events."""
    gantt: GanttData | None = None
    """Its newest steps; None without spans of them."""
    bottleneck: str = ""
    """What its learner waited for in the newest steps, in one sentence."""

    @property
    def step(self) -> int:
        """The newest step that was reported."""
        return max((series[-1][0] for series in self.history.values() if series), default=0)

    def total(self, metric: str) -> float:
        """The sum of a metric over the steps."""
        return sum(value for _, value in self.history.get(metric, ()))

    def last_interval(self, metric: str) -> Interval | None:
        """The confidence interval of a share's last value; None if its sample size is unknown."""
        last = {name: series[-1][1] for name, series in self.history.items() if series}
        return interval_of(metric, last)

    def ends(self, metric: str) -> tuple[float, float] | None:
        """The first and the last value of a metric; None if it was never measured."""
        series = self.history.get(metric, ())
        return (series[0][1], series[-1][1]) if series else None


@dataclass(frozen=True, slots=True)
class Sample:
    """One rollout to show. `right` is None if it could not be scored."""

    prompt_id: str
    prompt: str
    response: str
    right: bool | None
    reward: float
    reflected: bool
    reason: str


@dataclass(frozen=True, slots=True)
class SamplePair:
    """A rollout from the beginning and one from the end of training."""

    before: Sample
    after: Sample


@dataclass(frozen=True, slots=True)
class Transitions:
    """Numbers of prompts by whether they were answered correctly before and after."""

    right_right: int
    wrong_right: int
    right_wrong: int
    wrong_wrong: int


@dataclass(frozen=True, slots=True)
class Samples:
    """Rollouts from the beginning and the end of the last stage. `transitions` is None
    if their prompts differ.
    """

    before_title: str
    after_title: str
    pairs: tuple[SamplePair, ...]
    transitions: Transitions | None


@dataclass(frozen=True, slots=True)
class ReportData:
    """A run, or a pipeline with its stages in order. `cost` is the JSON of `orchestrator cost report`, None
    if it could not be read.
    """

    run_id: str
    job: str
    title: str
    purpose: str
    state: str
    why: str
    started_ns: int
    ended_ns: int | None
    stages: tuple[StageData, ...]
    samples: Samples | None = None
    cost: Mapping[str, Any] | None = None
    facts: tuple[tuple[str, str], ...] = ()
    """Name and value pairs: model, task, algorithm, commit."""
    weights: str | None = None
    """The folder of the final model."""
    reflection_pattern: str = ""
    config: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict[str, Any])
