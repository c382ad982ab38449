import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from orchestrator.console.report_reader import read_report, write_report
from orchestrator.errors import RunNotFoundError
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.record import RunState
from orchestrator.training.manifest import RunFacts
from orchestrator.training.records import BatchPart, Finish, Prompt, RolloutBlock, ScoreBlock, ScoreStatus
from orchestrator.training.telemetry.recorder import RolloutRecorder

SECOND = 1_000_000_000
SETTINGS = (("model", "tiny_moe"), ("batch", "64 prompts x 8 rollouts per step"), ("seed", "3"))


def answers(texts: list[str], right: list[float], first_prompt: int = 0) -> BatchPart:
    """One answer per prompt. NaN in `right`: not scored."""
    count = len(texts)
    ungraded = np.isnan(right)
    rollouts = RolloutBlock(
        group_ids=np.arange(count, dtype=np.int64),
        group_size=1,
        prompts=tuple(
            Prompt(f"countdown/heldout/{first_prompt + i}", f"{first_prompt + i}=?", {}) for i in range(count)
        ),
        prompt_tokens=np.zeros(count, dtype=np.int32),
        prompt_offsets=np.arange(count + 1, dtype=np.int64),
        tokens=np.zeros(count, dtype=np.int32),
        offsets=np.arange(count + 1, dtype=np.int64),
        logprobs=np.zeros(count, dtype=np.float32),
        versions=np.zeros(count, dtype=np.int32),
        trainable=np.ones(count, dtype=np.bool_),
        finish=np.full(count, Finish.LENGTH, dtype=np.uint8),
        texts=tuple(texts),
    )
    scores = ScoreBlock(
        rewards=np.nan_to_num(np.array(right)),
        components={"accuracy": np.array(right)},
        grades=np.where(ungraded, np.uint8(ScoreStatus.CRASHED), np.uint8(ScoreStatus.OK)),
        reasons=tuple("ValueError" if failed else "" for failed in ungraded),
        reflected=np.array(["wait" in text for text in texts]),
    )
    return BatchPart(rollouts, scores, tuple(range(count)))


def new_run(path: Path, stage: str = "", pipeline: str = "", plays_back: bool = False) -> RunDirectory:
    run = RunDirectory(path)
    run.create()
    run.begin(job="grpo", purpose="final", steps=20, at_ns=10 * SECOND, pipeline=pipeline, stage=stage)
    facts = RunFacts("tiny_moe", "countdown", plays_back, r"\bwait\b", SETTINGS)
    run.manifest.write_text(json.dumps({"facts": asdict(facts)}))
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return new_run(tmp_path / "grpo-1")


def test_a_run_without_steps_can_be_reported(run: RunDirectory) -> None:
    data = read_report(run, None)
    assert (data.title, data.state, data.samples, data.cost, data.weights) == (
        "tiny_moe on countdown", "running", None, None, None,
    )  # fmt: skip
    assert data.stages[0].steps == 20
    assert data.stages[0].step == 0
    assert data.facts == SETTINGS
    assert data.reflection_pattern == r"\bwait\b"


def test_a_run_without_a_manifest_has_no_facts(run: RunDirectory) -> None:
    run.manifest.unlink()
    data = read_report(run, None)
    assert (data.title, data.facts, data.stages[0].playback) == ("Learning curve", (), False)


def test_samples_compare_the_same_heldout_prompts_before_and_after(run: RunDirectory) -> None:
    recorder = RolloutRecorder()
    before = answers(["a", "b", "c", "d", "e", "f"], [0, 0, 0, 1, 1, np.nan])
    after = answers(["A", "B, wait", "C", "D", "E", "F"], [1, 1, 0, 1, 0, 1])
    for step, part in ((0, before), (10, answers(["?"] * 6, [0] * 6)), (20, after)):
        recorder.record(step, [part], run.path / "evaluations", "heldout")
    samples = read_report(run, None).samples
    assert samples is not None
    assert (samples.before_title, samples.after_title) == ("before the first step", "after step 20")
    assert samples.transitions is not None
    counts = samples.transitions
    assert (counts.wrong_right, counts.right_right, counts.wrong_wrong, counts.right_wrong) == (2, 1, 1, 1)
    shown = [(pair.before.response, pair.after.response) for pair in samples.pairs]
    assert shown == [("b", "B, wait"), ("a", "A"), ("d", "D"), ("c", "C"), ("e", "E")]
    assert samples.pairs[0].after.reason == "cut off after 1 tokens"


def test_without_evaluations_samples_come_from_the_first_and_last_step(run: RunDirectory) -> None:
    recorder = RolloutRecorder()
    recorder.record(1, [answers(["a", "b"], [0, np.nan])], run.rollouts)
    assert read_report(run, None).samples is None  # one step is no comparison
    recorder.record(20, [answers(["c"], [1], first_prompt=7)], run.rollouts)
    samples = read_report(run, None).samples
    assert samples is not None
    assert samples.transitions is None
    assert [(pair.before.response, pair.after.response) for pair in samples.pairs] == [("a", "c")]


def test_worked_solutions_are_not_shown_as_samples_of_the_model(tmp_path: Path) -> None:
    run = new_run(tmp_path / "sft-1", plays_back=True)
    for step in (1, 20):
        RolloutRecorder().record(step, [answers(["a"], [1])], run.rollouts)
    assert read_report(run, None).samples is None


def test_long_answers_are_shortened_in_the_middle(run: RunDirectory) -> None:
    for step in (0, 20):
        part = answers(["x" * 5000 + "the end"], [1])
        RolloutRecorder().record(step, [part], run.path / "evaluations", "heldout")
    samples = read_report(run, None).samples
    assert samples is not None
    response = samples.pairs[0].after.response
    assert "[... 1,007 characters left out ...]" in response
    assert response.endswith("the end")


def test_a_pipeline_shows_its_stages_in_order(tmp_path: Path) -> None:
    pipeline = RunDirectory(tmp_path / "r1-1")
    pipeline.create()
    pipeline.begin(
        job="r1", purpose="final", steps=0, at_ns=1 * SECOND, stages=("cold_start", "grpo", "later")
    )
    sft = new_run(tmp_path / "r1-1-cold_start", "cold_start", "r1-1", plays_back=True)
    grpo = new_run(tmp_path / "r1-1-grpo", "grpo", "r1-1")
    for stage in (sft, grpo):
        pipeline.add_stage(stage.record().stage, stage.run_id)
        stage.append_metrics(0, {"accuracy/heldout": 0.25}, 11 * SECOND)
        stage.append_metrics(5, {"accuracy/heldout": 0.5, "accuracy/train": 0.5}, 12 * SECOND)
        stage.write_state(RunState.DONE, "", 20 * SECOND)
    for step in (0, 20):
        part = answers(["a"], [1])
        RolloutRecorder().record(step, [part], grpo.path / "evaluations", "heldout")
    grpo.model.mkdir()
    data = read_report(pipeline, None)
    assert [(stage.name, stage.state, stage.step) for stage in data.stages] == [
        ("cold start", "done", 5),
        ("grpo", "done", 5),
    ]
    assert [stage.playback for stage in data.stages] == [True, False]
    assert data.samples is not None
    assert data.samples.before_title == "after cold start"
    assert data.weights == str(grpo.model)


def test_the_page_is_written_into_the_run(run: RunDirectory) -> None:
    run.append_metrics(0, {"accuracy/heldout": 0.25}, 11 * SECOND)
    run.append_metrics(20, {"accuracy/heldout": 0.75}, 12 * SECOND)
    manifest = json.loads(run.manifest.read_text()) | {
        "git": {"commit": "0123456789abcdef", "uncommitted_changes": True}
    }
    run.manifest.write_text(json.dumps(manifest))
    run.write_state(RunState.FAILED, "the learner was lost", 70 * SECOND)
    write_report(run, None)
    page = run.report.read_text()
    for expected in ("25.0% →", "75.0%", "the learner was lost", "0123456789ab with uncommitted changes"):
        assert expected in page


def test_a_directory_without_a_run_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError):
        write_report(RunDirectory(tmp_path / "missing"), None)
