"""The Gantt chart of a report: rows, bars and the critical path, in a wide and a narrow window."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from orchestrator.console.gantt import (
    MOST_ROWS,
    MOST_SPANS,
    MOST_STEPS,
    NARROW_GANTT,
    WIDE_GANTT,
    GanttData,
    GanttFrame,
    actors_of,
    gantt_chart,
    readable,
)
from orchestrator.console.report import render_report
from orchestrator.console.report_reader import read_report
from orchestrator.runs.timeline.critical_path import critical_path
from orchestrator.runs.timeline.spans import ActorSpan
from orchestrator.runs.timeline.steps import StepWindow
from tests.fakes.timelines import SECOND, at, span, synchronous_step, timed_run

SVG = "{http://www.w3.org/2000/svg}"


def steps(count: int) -> GanttData:
    windows = [
        StepWindow(step, at(10.0 * (step - 1)), at(10.0 * step), round(7.1 * SECOND))
        for step in range(1, count + 1)
    ]
    spans = [each for step in range(count) for each in synchronous_step(step, 10.0 * step)]
    path = [segment for window in windows for segment in critical_path(window, spans)]
    return GanttData(tuple(windows), tuple(spans), tuple(path))


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?[\d.]+", text)]


@pytest.mark.parametrize("frame", [WIDE_GANTT, NARROW_GANTT])
@pytest.mark.parametrize("count", [1, 4])
def test_everything_stays_inside_the_frame(frame: GanttFrame, count: int) -> None:
    data = steps(count)
    early = span("rollout-0", "generate", -9, 0.05, 0)
    svg = ElementTree.fromstring(gantt_chart(GanttData(data.windows, (early, *data.spans), data.path), frame))
    _, _, width, height = numbers(svg.attrib["viewBox"])
    assert len(svg.findall("rect")) == 7 * count + 1
    for box in svg.findall("rect"):
        x, y, wide, high = (float(box.attrib[name]) for name in ("x", "y", "width", "height"))
        assert frame.left <= x <= x + wide <= width
        assert 0 <= y <= y + high <= height
    (chain,) = svg.findall("polyline")
    places = numbers(chain.attrib["points"])
    assert all(frame.left <= x <= width for x in places[0::2])
    assert all(0 <= y <= height for y in places[1::2])


def test_a_bar_is_as_long_as_its_span_and_says_what_it_is() -> None:
    svg = ElementTree.fromstring(gantt_chart(steps(1), GanttFrame(width=192, left=84, row=20, ticks=5)))
    bars = {bar.findtext("title"): bar for bar in svg.findall("rect")}
    longest = bars["rollout-1: generate 6 s, for step 0"]
    assert longest.attrib["class"] == "generate"
    assert float(longest.attrib["x"]) == pytest.approx(84 + 1.0)  # ten units for a second
    assert float(longest.attrib["width"]) == pytest.approx(60.0)
    assert [text.text for text in svg.findall("text")] == [
        "learner-0",
        "rollout-0",
        "rollout-1",
        "reward-0",
        "step 1",
        "0",
        "2 s",
        "4 s",
        "6 s",
        "8 s",
        "10 s",
    ]
    (chain,) = svg.findall("polyline")
    # Through the rows of rollout-1 (66 to 84 below the top), reward-0, and learner-0.
    assert chain.attrib["points"].startswith("85.0,74.0 145.0,74.0 146.0,94.0 154.0,94.0 156.0,34.0")


def test_many_steps_are_too_many_for_one_chart() -> None:
    assert [window.step for window in readable(steps(9)).windows] == [6, 7, 8, 9]
    assert len(readable(steps(MOST_STEPS)).windows) == MOST_STEPS
    data = steps(4)
    crowd = [span(f"rollout-{i}", "generate", 1, 39, 0) for i in range(MOST_SPANS + 1)]
    assert [window.step for window in readable(GanttData(data.windows, tuple(crowd), ())).windows] == [4]


def test_of_many_actors_those_on_the_critical_path_are_shown_first() -> None:
    def some(role: str, count: int) -> list[ActorSpan]:
        return [span(f"{role}-{index}", "generate", 0, 1, 0) for index in range(count)]

    spans = [*some("reward", 3), *some("rollout", 40), *some("learner", 2)]
    data = GanttData(steps(1).windows, tuple(spans), ())
    shown = actors_of(data)
    assert len(shown) == MOST_ROWS
    assert shown[:5] == ["learner-0", "learner-1", "rollout-0", "rollout-1", "rollout-2"]
    window = data.windows[0]
    on_path = critical_path(
        window,
        [
            span("rollout-39", "generate", 0, 8, 0),
            span("reward-2", "score", 8, 9, 0),
            span("learner-1", "update", 9, 10, 0),
        ],
    )
    assert {"rollout-39", "reward-2"} <= set(actors_of(GanttData(data.windows, data.spans, on_path)))


def test_labels_of_short_steps_do_not_overlap() -> None:
    ends = [0.0, 1.0, 2.0, 40.0, 80.0]
    windows = tuple(StepWindow(step, at(ends[step - 1]), at(ends[step])) for step in (1, 2, 3, 4))
    svg = ElementTree.fromstring(gantt_chart(GanttData(windows, tuple(synchronous_step()), ()), WIDE_GANTT))
    labels = [text.text for text in svg.findall("text") if (text.text or "").startswith("step")]
    assert labels == ["step 1", "step 4"]


def test_the_legend_names_what_is_drawn() -> None:
    assert steps(1).styles == [
        ("generate", "generate"),
        ("score", "score"),
        ("learn", "update"),
        ("sync", "sync weights"),
    ]
    loading = GanttData(steps(1).windows, (span("learner-0", "load", 0, 1, 0),), ())
    assert loading.styles == [("other", "other")]


def test_names_of_actors_are_escaped() -> None:
    hostile = span('rollout-<script>"', "generate", 0, 1, 0)
    drawn = gantt_chart(GanttData(steps(1).windows, (hostile,), ()), WIDE_GANTT)
    assert "<script>" not in drawn
    ElementTree.fromstring(drawn)


def test_the_report_says_who_waited_for_whom(tmp_path: Path) -> None:
    run = timed_run(tmp_path / "run", steps=6)
    page = render_report(read_report(run, None))
    assert "Over steps 1 to 6 the learner waited 60% of the time for the longest rollout (rollout-1)" in page
    assert "What 4 actors did in steps 3 to 6" in page
    assert "What 4 actors did in step 6" in page  # the narrow chart


def test_a_report_without_spans_has_the_sentence_and_no_chart(tmp_path: Path) -> None:
    run = timed_run(tmp_path / "run")
    for path in run.ledger.iterdir():
        path.unlink()
    page = render_report(read_report(run, None))
    assert "There are no usage spans of these steps" in page
    assert 'class="gantt"' not in page


def test_a_report_of_a_run_without_steps_has_neither(tmp_path: Path) -> None:
    assert "Who waited for whom" not in render_report(read_report(timed_run(tmp_path / "run", steps=0), None))
