"""Whole runs on a real Ray with real DeepSpeed ranks: their results, and how
they are interrupted and resumed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrator.runs.directory import RunDirectory
from orchestrator.training.checkpoints.format import complete
from tests.conftest import PATIENT_TRACKING, Program
from tests.running import going_on, interrupt, last_step, wait_for_step, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SmallRun = Callable[..., tuple[str, ...]]


@pytest.fixture(scope="module")
def asynchronous_run(program: Program, small_run: SmallRun) -> str:
    """Three steps, one step off-policy, two ranks with ZeRO 2, tracked in MLflow."""
    words = small_run(
        "asynchronous",
        "steps=3",
        "rollout.workers=2",
        "max_staleness=1",
        "learner.world_size=2",
        "learner.zero_stage=2",
        "algorithm=grpo_tis",
        "algorithm.drop_uninformative=false",  # this model never earns a reward; compute its groups anyway
        *PATIENT_TRACKING,
        "evaluation.samples=4",
    )
    document = program.json(*words)
    assert document["state"] == "done"
    return "asynchronous"


def test_a_run_reports_its_metrics(program: Program, asynchronous_run: str) -> None:
    status = program.json("status", asynchronous_run)

    assert (status["state"], status["step"], status["steps"]) == ("done", 3, 3)
    assert [step for step, _ in status["history"]["accuracy/heldout"]] == [0, 2, 3]
    sampled = ("pass_at_1", "pass_at_2", "pass_at_4", "maj_at_4")
    assert {name for name in status["history"] if name.startswith("eval/")} == {
        f"eval/{it}" for it in sampled
    }
    assert [step for step, _ in status["history"]["eval/pass_at_4"]] == [0, 2, 3]
    assert status["metrics"]["eval/pass_at_1"] <= status["metrics"]["eval/pass_at_4"] <= 1
    assert not [name for name in status["metrics"] if name.startswith("mfu/")]  # a CPU slot has no peak
    assert len(status["history"]["policy/loss"]) == 3
    assert 0 <= status["metrics"]["offpolicy/staleness_max"] <= 1
    assert status["metrics"]["rollout/tokens"] > 0
    # tiny_moe: layer 0 is dense, layers 1 and 2 have 8 experts
    assert status["metrics"]["moe/expert_load_max_over_mean/layer_1"] >= 1
    routing = RunDirectory(program.output_dir / asynchronous_run).read_routing()
    assert routing.keys() == {1, 2}
    assert all(sum(shares) == pytest.approx(1, abs=0.01) for shares in routing[2].values())
    assert 'class="load"' in (program.output_dir / asynchronous_run / "report.html").read_text()


def test_the_timeline_explains_every_step(program: Program, asynchronous_run: str, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        document = program.json("timeline", asynchronous_run, "--step", str(step))
        path = document["critical_path"]
        total = sum(part["end_ns"] - part["start_ns"] for part in path)
        assert total == pytest.approx(document["seconds"] * 1e9)
        assert {"learner", "rollout", "reward"} <= {
            part["role"] for part in path
        }  # each step evaluates or waits
        actors = {row["actor"] for row in document["rows"]}
        assert {"learner-0", "learner-1", "rollout-0", "reward-0"} <= actors
        assert f"In step {step} the learner" in document["sentence"]
        assert (document["clock_shifts_ns"], document["damaged_lines"]) == ({}, 0)
    assert program.json("status", asynchronous_run)["bottleneck"] == document["recent"]["sentence"]
    trace = tmp_path / "trace.json"
    program("timeline", asynchronous_run, "--trace", str(trace))
    spans = [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]
    assert {"load", "generate", "evaluate", "score", "update", "sync"} <= {span["name"] for span in spans}
    report = (program.output_dir / asynchronous_run / "report.html").read_text()
    assert 'class="gantt"' in report


def test_asynchronous_training_is_one_step_off_policy(program: Program, asynchronous_run: str) -> None:
    lines = (program.output_dir / asynchronous_run / "metrics.jsonl").read_text().splitlines()
    staleness = [json.loads(line)["metrics"].get("offpolicy/staleness_max") for line in lines]

    assert [age for age in staleness if age is not None] == [0.0, 1.0, 1.0]


def test_every_rollout_is_written_and_every_column_filled(program: Program, asynchronous_run: str) -> None:
    table = pq.read_table(program.output_dir / asynchronous_run / "rollouts" / "step-000003.parquet")

    assert table.num_rows == 8 * 4
    assert {"prompt", "response", "reward", "accuracy", "version"} <= set(table.column_names)
    shown = program.json("rollouts", asynchronous_run, "--step", "3", "--worst", "2")
    assert len(shown) == 2


def test_the_ledger_accounts_for_every_nanosecond(program: Program, asynchronous_run: str) -> None:
    report = program.json("cost", "report", asynchronous_run)

    assert report["difference_ns"] == 0
    assert report["attributed_ns"] + report["idle_ns"] == report["leased_ns"] > 0
    pairs = {(row["role"], row["activity"]) for row in report["rows"]}
    assert {("rollout", "generate"), ("reward", "score"), ("learner", "update"), ("learner", "sync")} <= pairs


def test_mlflow_has_the_run_with_its_files(program: Program, asynchronous_run: str) -> None:
    client = MlflowClient(f"sqlite:///{program.output_dir / 'mlflow.db'}")
    runs = [
        run
        for experiment in client.search_experiments()
        for run in client.search_runs([experiment.experiment_id])
    ]
    (run,) = [run for run in runs if asynchronous_run in run.data.tags.values()]

    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "policy/loss")) == 3
    assert run.data.params["max_staleness"] == "1"
    files = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "manifest.json", "learning_curve.png"} <= files


def test_the_exported_model_loads_in_plain_transformers(program: Program, asynchronous_run: str) -> None:
    folder = program.output_dir / asynchronous_run / "model"

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    inputs = tokenizer("3 6 2=7", return_tensors="pt")
    assert model(**inputs).logits.shape[-1] == model.config.vocab_size


def test_the_last_checkpoint_exports_the_model_that_the_learner_exported(
    program: Program, asynchronous_run: str, tmp_path: Path
) -> None:
    document = program.json("models", "export", asynchronous_run, str(tmp_path / "exported"))

    assert (document["run_id"], document["step"]) == (asynchronous_run, 3)
    learners = load_file(program.output_dir / asynchronous_run / "model" / "model.safetensors")
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    assert exported.keys() == learners.keys()
    assert all(torch.equal(exported[name], learners[name]) for name in learners)
    assert "accelerator-hours" in (tmp_path / "exported" / "README.md").read_text()


def test_a_killed_run_resumes_bit_for_bit(program: Program, small_run: SmallRun) -> None:
    """Synchronous with one rank: the losses after the resume equal those of a
    run that was never interrupted.
    """
    directory = program.output_dir / "broken"
    with going_on(program, *small_run("broken", "checkpoint.every=1")) as process:
        # It may be either of them: two are kept, and the progress of the run at this point is unknown.
        wait_until(lambda: len(complete(directory / "checkpoints")) >= 2, "a second checkpoint", process)
        process.kill()
    assert program.json("status", "broken")["state"] == "failed"

    steps = f"steps={last_step(directory) + 3}"
    program("resume", "broken", steps)
    program(*small_run("unbroken", "checkpoint.every=1", steps))

    assert program.losses("broken") == program.losses("unbroken")
    assert program.json("status", "broken")["history"] == program.json("status", "unbroken")["history"]
    attempts = {row["attempt"] for row in program.json("timeline", "broken")["rows"]}
    assert attempts == {2}
    report = program.json("cost", "report", "broken")
    assert report["difference_ns"] == 0


@pytest.mark.long
def test_an_interrupted_run_writes_a_checkpoint_and_exits_with_4(
    program: Program, small_run: SmallRun
) -> None:
    directory = program.output_dir / "interrupted"
    with going_on(program, *small_run("interrupted", "checkpoint.every=0")) as process:
        wait_for_step(directory, 0, process)
        interrupt(process)

    assert program.json("status", "interrupted")["state"] == "drained"
    (checkpoint,) = (directory / "checkpoints").glob("step-*")
    step = int(checkpoint.name.removeprefix("step-"))
    program("resume", "interrupted", f"steps={step + 1}")
    assert program.json("status", "interrupted")["step"] == step + 1


@pytest.mark.long
def test_a_run_continues_with_other_ranks_and_back(program: Program, small_run: SmallRun) -> None:
    """Saved by two ranks at ZeRO 2, resumed by one, and by two again; changes
    of the algorithm stay rejected.
    """
    run = "reshaped"
    program(*small_run(run, "steps=1", "learner.world_size=2", "learner.zero_stage=2", "evaluation.every=0"))
    refused = program.json("resume", run, "steps=2", "learner.learning_rate=1", code=2)
    assert refused["key"] == "learner.learning_rate"
    assert "optimizer state" in refused["hint"]
    assert program.json("status", run)["state"] == "done"

    program("resume", run, "steps=2", "learner.world_size=1", "learner.expert_parallel_size=1")
    program("resume", run, "steps=3", "learner.world_size=2", "learner.zero_stage=3")

    assert sorted(program.losses(run)) == [1, 2, 3]
    shards = (program.output_dir / run / "checkpoints").glob("step-*/rank-*")
    assert sorted(f"{path.parent.name}/{path.name}" for path in shards) == [
        "step-000002/rank-0-of-1.safetensors",
        "step-000003/rank-0-of-2.safetensors",
        "step-000003/rank-1-of-2.safetensors",
    ]


@pytest.fixture(scope="module")
def losses_over(program: Program, small_run: SmallRun) -> Callable[[str], dict[int, float]]:
    """The losses of a run by its weight channel. Rewards decrease with the length, which varies from the
    start, so that there is something to learn.
    """

    def losses(channel: str) -> dict[int, float]:
        run = f"weights-{channel.replace('_', '-')}"
        rules = ("steps=3", "evaluation.every=0", "checkpoint.every=0", "reward.overlong_buffer=8")
        program(*small_run(run, *rules, f"weights.channel={channel}"))
        return program.losses(run)

    return losses


@pytest.fixture(scope="module")
def losses_over_shared_memory(losses_over: Callable[[str], dict[int, float]]) -> dict[int, float]:
    return losses_over("shared_memory")


@pytest.mark.long
def test_losses_do_not_depend_on_the_weight_channel(
    losses_over: Callable[[str], dict[int, float]],
    losses_over_shared_memory: dict[int, float],
) -> None:
    assert losses_over("object_store") == losses_over_shared_memory
    assert any(losses_over_shared_memory.values())
