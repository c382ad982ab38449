"""Renders report.html: one self-contained page about a run, which can be read on any
screen, mailed or archived.

Style, charts and text are all inside the file. It loads nothing and runs no script. Every value
from a run is escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import jinja2
from markupsafe import Markup

from orchestrator.clock import NANOSECONDS
from orchestrator.console.charts import NARROW, WIDE, learning_curve, small_chart
from orchestrator.console.formats import duration, money, sampled_accuracies, short
from orchestrator.console.gantt import (
    MOST_ROWS,
    NARROW_GANTT,
    WIDE_GANTT,
    GanttData,
    actors_of,
    gantt_chart,
)
from orchestrator.console.heat_map import HeatPanel, heat_panels, scale
from orchestrator.console.report_data import ReportData, StageData
from orchestrator.console.run_curves import stage_curve
from orchestrator.percent import percent

HELDOUT, REFLECTION = "accuracy/heldout", "rollout/reflection_fraction"

TIME_PARTS = (
    ("generate", ("time/generate",)),
    ("score", ("time/score",)),
    ("learn", ("time/learn",)),
    ("sync", ("time/sync",)),
    ("evaluate", ("time/evaluate",)),
    ("other", ("time/checkpoint", "time/orchestration")),
)
"""The parts of a stage's time and the metrics that add up to each. `other` is checkpoints and time in
which no actor worked.
"""

METRICS = (
    ("reward/mean", "mean reward"),
    ("policy/loss", "loss"),
    ("policy/entropy", "entropy"),
    ("policy/kl", "KL to the reference"),
    ("policy/grad_norm", "gradient norm"),
    ("policy/clip_fraction", "clipped tokens"),
    ("offpolicy/logprob_gap_mean", "log-prob gap to the sampler"),
    ("rollout/length_mean", "response length, tokens"),
    ("rollout/tokens_per_s", "tokens/s sampled"),
    ("mfu/learner", "learner's model FLOPs utilisation"),
    ("mfu/rollout", "sampling's model FLOPs utilisation"),
    ("moe/expert_load_max_over_mean", "busiest expert, times the mean"),
    ("moe/router_entropy", "router entropy"),
)

NO_WORK = ("idle", "lost")
CREDENTIALS = re.compile(r"(://[^:/@\s]+:)[^@/\s]+@")


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline number."""

    label: str
    value: str
    note: str = ""
    before: str = ""


@dataclass(frozen=True, slots=True)
class TimePart:
    """One part of a bar: its share of the bar, and its seconds."""

    name: str
    seconds: float
    share: float


def render_report(data: ReportData) -> str:
    """Render the page. Pure: the same data gives the same bytes."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("orchestrator.console"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    curves = [stage_curve(stage.name, stage.history, stage.playback) for stage in data.stages]
    measured = [curve for curve in curves if curve.heldout or curve.train]
    return environment.get_template("report.html.j2").render(
        data=data,
        segments=lambda text: list(segments(text, data.reflection_pattern)),
        tiles=tiles(data),
        checks_shown=_checks_shown(data),
        summary=summary(data),
        # The charts are built by an XML writer from numbers and escaped names.
        wide_curve=Markup(learning_curve(measured, WIDE)) if measured else "",
        narrow_curve=Markup(learning_curve(measured, NARROW)) if measured else "",
        times=[(stage, time_parts(stage)) for stage in data.stages if stage.total("time/step")],
        part_names=[name for name, _ in TIME_PARTS],
        overhead=_overhead(data.stages),
        waits=[(stage, _gantt(stage.gantt)) for stage in data.stages if stage.bottleneck or stage.gantt],
        metrics=_metric_charts(data.stages),
        heat=[(stage, _heat(stage)) for stage in data.stages if stage.routing],
        heat_scale=Markup(scale()),
        cost=_cost(data.cost),
        config=CREDENTIALS.sub(r"\1***@", data.config),
        manifest=json.dumps(data.manifest, indent=2, ensure_ascii=False) if data.manifest else "",
        started=_moment(data.started_ns),
        duration=duration,
        short=short,
    )


def _gantt(data: GanttData | None) -> dict[str, Any] | None:
    """The charts of a stage's newest steps. They are safe because an XML writer built them."""
    if data is None:
        return None
    newest = data.newest(1)
    everyone = len({span.actor for span in data.spans})
    return {
        "wide": Markup(gantt_chart(data, WIDE_GANTT)),
        "narrow": Markup(gantt_chart(newest, NARROW_GANTT)) if newest.spans else "",
        "styles": data.styles,
        "steps": data.windows,
        "hidden": everyone - len(actors_of(data)) if everyone > MOST_ROWS else 0,
    }


def _heat(stage: StageData) -> list[tuple[HeatPanel, Markup]]:
    """The heat map panels with their pictures, which are safe because an XML
    writer built them from numbers.
    """
    return [(panel, Markup(panel.svg)) for panel in heat_panels(stage.routing)]


def tiles(data: ReportData) -> list[Tile]:
    """The headline numbers that are known."""
    found: list[Tile] = []
    main = data.stages[-1] if data.stages else None
    heldout = main.ends(HELDOUT) if main else None
    if main and heldout:
        before, after = heldout
        note = _joined(_bounds(main, HELDOUT), _points(after - before))
        found.append(Tile("held-out accuracy", percent(after), note, percent(before)))
    for metric, label, (before, after) in _sampled(main) if main else ():
        note = _joined(_bounds(main, metric), "of sampled held-out answers")
        found.append(Tile(label, percent(after), note, percent(before)))
    checks = main.ends(REFLECTION) if main and not main.playback else None
    if checks:
        note = _joined(_bounds(main, REFLECTION), "of the sampled rollouts, first and last step")
        found.append(Tile("self-checks", percent(checks[1]), note, percent(checks[0])))
    steps = " + ".join(f"{stage.step:,}" for stage in data.stages)
    if steps:
        found.append(Tile("learner steps", steps, " + ".join(stage.name for stage in data.stages)))
    tokens = sum(stage.total("rollout/tokens") for stage in data.stages if not stage.playback)
    if tokens:
        found.append(Tile("tokens sampled", compact(tokens), "in training, without evaluations"))
    seconds = _wall_seconds(data)
    if seconds is not None:
        found.append(Tile("wall time", duration(seconds), "start to end"))
    if data.cost is not None:
        note = f"{_figure(data.cost['accelerator_hours'])} accelerator-hours"
        found.append(Tile("cost", f"{money(Decimal(data.cost['amount']))} {data.cost['currency']}", note))
    return found


def _bounds(stage: StageData | None, metric: str) -> str:
    """The 95 % interval of a share's last value as a note; empty if unknown."""
    interval = stage.last_interval(metric) if stage else None
    return f"95% interval {percent(interval.low)} to {percent(interval.high)}" if interval else ""


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _sampled(stage: StageData) -> Iterator[tuple[str, str, tuple[float, float]]]:
    """pass@k and maj@k at the first and the last evaluation."""
    for metric, label in sampled_accuracies(stage.history):
        ends = stage.ends(metric)
        if ends is not None:
            yield metric, label, ends


def summary(data: ReportData) -> str:
    """The run in one sentence, for page previews and the top of the page."""
    main = data.stages[-1] if data.stages else None
    heldout = main.ends(HELDOUT) if main else None
    if main is None or heldout is None:
        return f"{data.title}: {data.state}"
    before, after = heldout
    verb = "rose" if after > before else "fell" if after < before else "stayed"
    change = f"from {percent(before)} to {percent(after)}" if after != before else f"at {percent(after)}"
    return f"{data.title}: held-out accuracy {verb} {change} in {main.step:,} steps of {main.name}."


def time_parts(stage: StageData) -> list[TimePart]:
    """The parts of a stage's time. Parts that ran at the same time are all counted, so the sum
    can exceed the wall time.
    """
    seconds = {name: sum(stage.total(metric) for metric in metrics) for name, metrics in TIME_PARTS}
    total = sum(seconds.values()) or 1.0
    return [TimePart(name, value, value / total) for name, value in seconds.items()]


def segments(text: str, pattern: str) -> Iterator[tuple[str, str]]:
    """Split `text` into (kind, part). The kind is `check` if the part matches the task's self-check pattern,
    `tag` for tags, otherwise `plain`.

    >>> list(segments("<think>7, wait, 8", r"\\bwait\\b"))
    [('tag', '<think>'), ('plain', '7, '), ('check', 'wait'), ('plain', ', 8')]
    """
    kinds = [f"(?P<check>{pattern})"] if pattern else []
    try:
        matcher = re.compile("|".join([*kinds, r"(?P<tag></?[a-z]+>)"]))
    except re.error:
        matcher = re.compile(r"(?P<tag></?[a-z]+>)")
    reached = 0
    for match in matcher.finditer(text):
        if match.start() > reached:
            yield "plain", text[reached : match.start()]
        if match.group():
            yield ("tag" if match.group("tag") else "check"), match.group()
        reached = match.end()
    if reached < len(text):
        yield "plain", text[reached:]


def compact(number: float) -> str:
    """Format a count in at most five characters.

    >>> compact(950), compact(14_210), compact(2_530_000)
    ('950', '14.2k', '2.53M')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _checks_shown(data: ReportData) -> bool:
    pairs = data.samples.pairs if data.samples else ()
    return any(sample.reflected for pair in pairs for sample in (pair.before, pair.after))


def _points(change: float) -> str:
    return f"{change * 100:+.1f} points over the last stage" if round(change * 100, 1) else "unchanged"


def _wall_seconds(data: ReportData) -> float | None:
    ends = [end for end in (data.ended_ns, *(stage.ended_ns for stage in data.stages)) if end is not None]
    return (max(ends) - data.started_ns) / NANOSECONDS if ends else None


def _overhead(stages: Sequence[StageData]) -> float | None:
    step = sum(stage.total("time/step") for stage in stages)
    return sum(stage.total("time/orchestration") for stage in stages) / step if step else None


def _metric_charts(stages: Sequence[StageData]) -> list[tuple[str, str, str, Markup]]:
    """(name, first, last, chart) of further metrics of the last stage."""
    if not stages:
        return []
    history = stages[-1].history
    return [
        (label, short(series[0][1]), short(series[-1][1]), Markup(small_chart(series)))
        for name, label in METRICS
        if len(series := history.get(name, ())) > 1
    ]


def _cost(cost: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The rows of the cost report as text, the most expensive first and idle time last."""
    if cost is None:
        return None
    total = Decimal(cost["accelerator_hours"]) or Decimal(1)
    rows = [
        {
            "role": row["role"],
            "activity": row["activity"],
            "resource": row["resource"],
            "hours": _figure(row["accelerator_hours"]),
            "amount": "no price" if row["amount"] is None else _figure(row["amount"]),
            "share": float(Decimal(row["accelerator_hours"]) / total),
            "idle": row["activity"] in NO_WORK,
        }
        for row in sorted(cost["rows"], key=_by_idle_then_hours)
    ]
    return {
        "currency": cost["currency"],
        "rows": rows,
        "hours": _figure(cost["accelerator_hours"]),
        "amount": _figure(cost["amount"]),
        "leased": duration(cost["leased_ns"] / NANOSECONDS),
        "attributed": duration(cost["attributed_ns"] / NANOSECONDS),
        "idle": duration(cost["idle_ns"] / NANOSECONDS),
        "idle_share": cost["idle_ns"] / cost["leased_ns"] if cost["leased_ns"] else 0.0,
        "difference_ns": cost["difference_ns"],
    }


def _by_idle_then_hours(row: Mapping[str, Any]) -> tuple[bool, Decimal]:
    return row["activity"] in NO_WORK, -Decimal(row["accelerator_hours"])


def _figure(value: str) -> str:
    """Add thousands separators to a decimal string of the ledger. All digits are kept, so that the lines
    add up to their total.
    """
    return f"{Decimal(value):,f}"


def _moment(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // NANOSECONDS, UTC).strftime("%d %b %Y, %H:%M UTC")
