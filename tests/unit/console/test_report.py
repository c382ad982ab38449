import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from orchestrator.console.charts import NARROW, WIDE, learning_curve, small_chart
from orchestrator.console.report import render_report, segments, summary, tiles, time_parts
from orchestrator.console.report_data import (
    ReportData,
    Sample,
    SamplePair,
    Samples,
    StageData,
    Transitions,
)
from orchestrator.training.telemetry.curve_layout import StageCurve

SECOND = 1_000_000_000
HOSTILE = "<script>alert(1)</script>\"'&{{ 7*7 }}"
VOID = {"meta", "br", "link", "img", "input", "hr"}


def stage(name: str = "grpo", **changes: Any) -> StageData:
    history = {
        "accuracy/heldout": [(0, 0.34), (2, 0.85)],
        "accuracy/train": [(1, 0.3), (2, 0.8)],
        "rollout/reflection_fraction": [(1, 0.36), (2, 0.61)],
        "rollout/tokens": [(1, 1_000_000.0), (2, 1_520_000.0)],
        "policy/loss": [(1, 0.5), (2, 0.25)],
        "time/step": [(1, 10.0), (2, 10.0)],
        "time/generate": [(1, 5.0), (2, 5.0)],
        "time/learn": [(1, 4.0), (2, 4.0)],
        "time/orchestration": [(1, 0.5), (2, 0.5)],
    }
    fields: dict[str, Any] = {
        "name": name,
        "run_id": f"r1-1-{name}",
        "job": name,
        "state": "done",
        "steps": 2,
        "started_ns": 0,
        "ended_ns": 90 * SECOND,
        "history": history,
        "playback": False,
    }
    return StageData(**fields | changes)


def sample(right: bool | None, response: str = "<think>7, wait, 8</think>") -> Sample:
    return Sample("countdown/heldout/3", "3,6,2=7", response, right, 1.0, "wait" in response, "")


def cost() -> dict[str, Any]:
    return {
        "run_id": "r1-1",
        "currency": "EUR",
        "leased_ns": 3600 * SECOND,
        "attributed_ns": 2700 * SECOND,
        "idle_ns": 900 * SECOND,
        "difference_ns": 0,
        "accelerator_hours": "1.000000",
        "amount": "1234.500000",
        "rows": [
            {
                "role": "",
                "activity": "idle",
                "resource": "cpu:core",
                "ns": 900 * SECOND,
                "accelerator_hours": "0.250000",
                "amount": "308.625000",
            },
            {
                "role": "learner",
                "activity": "update",
                "resource": "cpu:core",
                "ns": 2700 * SECOND,
                "accelerator_hours": "0.750000",
                "amount": None,
            },
        ],
    }


def data(**changes: Any) -> ReportData:
    samples = Samples(
        "before the first step",
        "after step 2",
        (SamplePair(sample(False, "<answer>3+6+2</answer>"), sample(True)),),
        Transitions(10, 20, 1, 5),
    )
    fields: dict[str, Any] = {
        "run_id": "r1-1",
        "job": "r1",
        "title": "tiny_moe learns countdown",
        "purpose": "final",
        "state": "done",
        "why": "",
        "started_ns": 0,
        "ended_ns": 100 * SECOND,
        "stages": (stage(),),
        "samples": samples,
        "cost": cost(),
        "facts": (("model", "tiny_moe"),),
        "weights": "runs/r1-1/model",
        "reflection_pattern": r"\bwait\b",
        "config": "seed: 0\n",
        "manifest": {"seed": 0},
    }
    return ReportData(**fields | changes)


class Page(HTMLParser):
    """Checks that every tag is closed, and collects everything that the page would load or run."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [
            f"{name}={value}" for name, value in attrs if name in ("src", "href", "srcset", "action")
        ]
        self.loads += [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


@pytest.mark.parametrize(
    "shown",
    [
        data(),
        data(stages=(stage("cold start", playback=True), stage())),
        data(
            stages=(), samples=None, cost=None, facts=(), weights=None, config="", manifest={}, ended_ns=None
        ),
        data(stages=(stage(history={}, ended_ns=None),), samples=None, state="running", ended_ns=None),
    ],
    ids=["run", "pipeline", "nothing", "just started"],
)
def test_the_page_is_self_contained(shown: ReportData) -> None:
    html = render_report(shown)
    page = Page(html)
    assert page.open == []
    assert page.loads == []
    assert "script" not in page.tags
    assert "url(" not in html
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert html == render_report(shown)


def test_the_page_shows_the_main_figures() -> None:
    text = Page(render_report(data())).text
    for expected in (
        "34.0% → 85.0%",
        "+51.0 points",
        "36.0% → 61.0%",
        "2.52M",
        "1:40",  # wall time
        "1,234.50 EUR",
        "1.000000 accelerator-hours",
        "20 went from wrong to right and 1 from right to wrong",
        "1:00:00 of accelerator time was leased: 45:00 did work, 15:00 (25%) stood idle",
        "idle: 0 ns",
        "no price",
        "runs/r1-1/model",
        "Orchestration, the time in which no actor worked, is 5.0% of it",
    ):
        assert expected in text


def test_everything_from_a_run_is_escaped() -> None:
    hostile = data(
        title=HOSTILE,
        run_id=HOSTILE,
        job=HOSTILE,
        why=HOSTILE,
        purpose=HOSTILE,
        stages=(stage(HOSTILE), stage(HOSTILE)),
        samples=Samples(
            HOSTILE,
            HOSTILE,
            (SamplePair(sample(None, HOSTILE), Sample(HOSTILE, HOSTILE, HOSTILE, None, 0.0, True, HOSTILE)),),
            None,
        ),
        facts=((HOSTILE, HOSTILE),),
        weights=HOSTILE,
        config=HOSTILE,
        manifest={HOSTILE: HOSTILE},
    )
    html = render_report(hostile)
    page = Page(html)
    assert page.open == []
    assert page.loads == []
    assert "script" not in page.tags
    assert "{{ 7*7 }}" in page.text


def test_self_checks_are_marked() -> None:
    html = render_report(data())
    assert html.count("<mark>wait</mark>") == 1
    assert "where a rollout checks itself" in html
    plain = sample(True, "no doubt")
    without = Samples("before", "after", (SamplePair(plain, plain),), None)
    assert "where a rollout checks itself" not in render_report(data(samples=without))


def test_an_invalid_pattern_marks_nothing() -> None:
    assert list(segments("wait (", "(")) == [("plain", "wait (")]
    assert "".join(part for _, part in segments("a <think> wait b", r"\bwait\b|")) == "a <think> wait b"


def test_a_pattern_with_groups_also_marks_self_checks() -> None:
    marked = list(segments("hm, Wait. <answer>7</answer>", r"\b([Ww])ait\b"))
    assert [part for kind, part in marked if kind == "check"] == ["Wait"]
    assert [part for kind, part in marked if kind == "tag"] == ["<answer>", "</answer>"]


def test_passwords_in_addresses_are_not_shown() -> None:
    html = render_report(data(config="ledger:\n  url: postgresql+psycopg://team:hunter2@db.example/ledger\n"))
    assert "hunter2" not in html
    assert "postgresql+psycopg://team:***@db.example/ledger" in html


def test_the_time_of_a_stage_is_broken_down() -> None:
    parts = {part.name: part for part in time_parts(stage())}
    assert parts["generate"].seconds == 10.0
    assert parts["other"].seconds == 1.0
    assert sum(part.share for part in parts.values()) == pytest.approx(1.0)


def test_tokens_of_a_cold_start_do_not_count_as_sampled() -> None:
    pipeline = data(stages=(stage("cold start", playback=True), stage()))
    shown = {tile.label: tile for tile in tiles(pipeline)}
    assert shown["tokens sampled"].value == "2.52M"
    assert shown["learner steps"].value == "2 + 2"


def test_sampled_and_greedy_held_out_accuracy_are_both_shown() -> None:
    history = {
        "accuracy/heldout": [(0, 0.34), (2, 0.85)],
        "eval/pass_at_1": [(0, 0.3), (2, 0.8)],
        "eval/pass_at_8": [(0, 0.5), (2, 0.97)],
        "eval/maj_at_8": [(0, 0.4), (2, 0.9)],
    }
    shown = [(tile.label, tile.before, tile.value) for tile in tiles(data(stages=(stage(history=history),)))]
    assert shown[:3] == [
        ("held-out accuracy", "34.0%", "85.0%"),
        ("pass@8", "50.0%", "97.0%"),
        ("maj@8", "40.0%", "90.0%"),
    ]


def test_the_share_of_self_checks_is_the_one_that_its_interval_is_about() -> None:
    history = {
        "rollout/reflection_fraction": [(1, 0.25), *((step, 0.5) for step in range(2, 40)), (40, 0.8)],
        "rollout/reflection_n": [(step, 256.0) for step in range(1, 41)],
    }
    (tile,) = [tile for tile in tiles(data(stages=(stage(history=history),))) if tile.label == "self-checks"]
    assert (tile.before, tile.value) == ("25.0%", "80.0%")
    assert "95% interval 74.7% to 84.4%" in tile.note


def test_the_summary_sentence() -> None:
    assert summary(data()) == (
        "tiny_moe learns countdown: held-out accuracy rose from 34.0% to 85.0% in 2 steps of grpo."
    )
    assert summary(data(stages=(), state="failed")) == "tiny_moe learns countdown: failed"
    flat = stage(history={"accuracy/heldout": [(0, 0.5), (1, 0.5)]})
    assert "stayed at 50.0%" in summary(data(stages=(flat,)))


def test_figures_that_were_not_measured_are_omitted() -> None:
    shown = data(stages=(stage(history={}),), cost=None, ended_ns=None)
    labels = {tile.label for tile in tiles(replace(shown, stages=(replace(shown.stages[0], ended_ns=None),)))}
    assert labels == {"learner steps"}
    assert "Nothing was measured yet" in render_report(shown)


@pytest.mark.parametrize("frame", [WIDE, NARROW])
def test_a_curve_stays_inside_its_frame(frame: Any) -> None:
    curves = [
        StageCurve("cold start", [(0, 0.0), (600, 0.3)]),
        StageCurve("a & b", [(s, s / 1000) for s in range(0, 1001, 10)], [(s, 1.2) for s in range(1000)]),
    ]
    svg = ElementTree.fromstring(learning_curve(curves, frame))
    points = [
        tuple(map(float, point.split(",")))
        for line in svg.iter("polyline")
        for point in line.attrib["points"].split()
    ]
    assert all(frame.left <= x <= frame.width - frame.right for x, _ in points)
    assert all(frame.top <= y <= frame.height - frame.bottom for _, y in points)
    assert len(points) < 1500  # thinned: the page stays small however long the run
    assert "a & b" in [text.text for text in svg.iter("text")]
    assert "from 0% to 100%" in svg.attrib["aria-label"]


def test_a_constant_metric_is_drawn_as_a_line() -> None:
    svg = ElementTree.fromstring(small_chart([(1, 2.0), (2, 2.0), (3, 2.0)]))
    heights = {point.split(",")[1] for line in svg for point in line.attrib["points"].split()}
    assert len(heights) == 1


def test_shares_have_intervals_and_warnings_are_at_the_top() -> None:
    warning = {"step": 3, "problem": "no_answers", "what": "No answer.", "check": "Look at <template>."}
    history = {
        "accuracy/heldout": [(0, 44 / 256), (80, 255 / 256)],
        "accuracy/heldout_n": [(0, 256.0), (80, 256.0)],
    }
    page = render_report(data(stages=(stage("grpo", history=history, warnings=(warning,)),)))
    assert "95% interval 97.8% to 99.9%; +82.4 points over the last stage" in page
    assert "step 80: 99.6% (97.8 to 99.9%) of the held-out prompts" in page
    assert 'class="interval"' in page
    assert "grpo, step 3: No answer. Look at &lt;template&gt;." in page
