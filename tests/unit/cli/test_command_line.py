"""The command line in this process: its output for people and for scripts, and its exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from orchestrator.cli import follow
from orchestrator.cli.app import run_command_line
from orchestrator.config.compose import compose
from orchestrator.config.run_config import RunConfig
from orchestrator.errors import OrchestratorError
from orchestrator.launch import launcher, preflight
from orchestrator.launch.prepared import PreparedJob
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.files import write_atomically
from orchestrator.runs.process import ProcessIdentity
from orchestrator.runs.record import RunState
from tests.support.composed import composed

AT_NS = 1_795_503_428_000_000_000
RUN_ID = "20261124-065708-grpo-0a1b"


class Answer(SimpleNamespace):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Call = Callable[..., Answer]
Started = list[tuple[Any, ...]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setenv("ORCHESTRATOR_OUTPUT_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Answer:
        code = run_command_line(list(arguments))
        out, err = capsys.readouterr()
        return Answer(code=code, out=out, err=err)

    return run


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Started:
    """Records what would have been started. The job ends immediately as drained."""
    calls: Started = []
    directory = RunDirectory(tmp_path / "started" / RUN_ID)

    def prepare(config: RunConfig, run_id: str | None = None) -> PreparedJob:
        calls.append(("run", config, run_id))
        return PreparedJob(config, directory, {}, None)

    def prepare_resume(run: RunDirectory, overrides: list[str], on_wait: object) -> PreparedJob:
        calls.append(("resume", run.run_id, overrides, run.path.parent))
        return PreparedJob(composed("grpo"), directory, {}, 1)

    def run(prepared: PreparedJob, views: object, stop: object) -> launcher.Outcome:
        directory.create()
        directory.begin(job="grpo", purpose="debug", steps=2, at_ns=AT_NS)
        directory.write_state(RunState.DRAINED, "", AT_NS)
        return launcher.Outcome(prepared.config, directory, RunState.DRAINED, "")

    for function in (prepare, prepare_resume, run):
        monkeypatch.setattr(launcher, function.__name__, function)
    return calls


@pytest.fixture
def recorded_run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "runs" / RUN_ID)
    run.create()
    run.begin(job="grpo", purpose="debug", steps=2, at_ns=AT_NS)
    run.config.write_text(composed("grpo").to_yaml())
    for step in (1, 2):
        run.append_metrics(step, {"reward/mean": step / 4, "policy/loss": float("nan")}, AT_NS)
        rows = [rollout(step, reward) for reward in (0.5, 1.1, 0.0, 0.25, 0.75)]
        pq.write_table(pa.Table.from_pylist(rows), run.rollouts / f"step-{step:06d}.parquet")
    run.append_event("worker_lost", {"worker": "rollout-0"}, AT_NS)
    run.log.write_text("one\ntwo\n")
    run.write_state(RunState.DONE, "", AT_NS)
    return run


def rollout(step: int, reward: float) -> dict[str, Any]:
    return {
        "step": step,
        "group_id": 1,
        "prompt_id": "countdown/train/17",
        "prompt": "3,6,2=7 [bold]",
        "response": "<think>wait, 3+6-2=7</think>",
        "reward": reward,
        "accuracy": float(reward > 0.5),
        "reflected": True,
        "length": 12,
        "finish": "stop",
        "grade": "ok",
        "reason": "",
        "version": step - 1,
        "component/accuracy": float(reward > 0.5),
    }


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_help_names_every_command(call: Call, arguments: tuple[str, ...]) -> None:
    answer = call(*arguments)
    assert answer.code == 0
    for command in [
        "run",
        "resume",
        "config",
        "runs",
        "status",
        "watch",
        "stop",
        "logs",
        "rollouts",
        "timeline",
        "doctor",
        "cost",
    ]:
        assert f"\n  {command} " in answer.out


@pytest.mark.slow
def test_config_prints_yaml_by_default_and_json_on_request(call: Call) -> None:
    text, document = call("config", "grpo", "seed=7"), call("config", "grpo", "seed=7", "--json")
    assert (text.code, document.code) == (0, 0)
    assert yaml.safe_load(text.out) == document.json == compose("grpo", ["seed=7"]).to_json()


@pytest.mark.slow
def test_the_config_of_a_stage_is_the_one_it_will_run_with(call: Call) -> None:
    answer = call("config", "r1_demo", "seed=7", "--stage", "cold_start", "--json")
    assert (answer.json["job"], answer.json["seed"]) == ("sft", 7)
    refused = call("config", "r1_demo", "--stage", "no_such", "--json")
    assert (refused.code, refused.json["allowed"]) == (2, "cold_start, grpo")
    assert call("config", "grpo", "--stage", "x", "--json").json["hint"] == "job grpo is not a pipeline"


def test_config_schema_is_a_json_schema(call: Call) -> None:
    assert call("config", "schema").json["title"] == "RunConfig"
    assert call("config", "schema", "seed=1").code == 2


@pytest.mark.slow
def test_run_passes_the_composed_config_on_and_returns_the_exit_code(call: Call, started: Started) -> None:
    answer = call(
        "run", "grpo", "--run-id", "mine", "task=chain_sum", "--json", "--address", "auto", "seed=2"
    )
    assert (answer.code, answer.json["state"]) == (4, "drained")
    [(name, config, run_id)] = started
    assert (name, run_id) == ("run", "mine")
    assert (config.task.name, config.seed, config.cluster.address) == ("chain_sum", 2, "auto")


@pytest.mark.slow
def test_run_accepts_all_kinds_of_overrides_and_a_custom_config_folder(
    call: Call, started: Started, tmp_path: Path
) -> None:
    own = tmp_path / "it's mine" / "task"
    own.mkdir(parents=True)
    values = compose("grpo", ["task=chain_sum"]).task.model_dump() | {"name": "mine"}
    (own / "mine.yaml").write_text(yaml.safe_dump(values))
    words = ["task=mine", "+model.architecture.pad_token_id=0", "++steps=4", "learner.adam_betas=[0.8,0.9]"]
    assert call("run", "grpo", "--config-dir", str(own.parent), *words).code == 4
    config = started[0][1]
    assert (config.task.name, config.steps, config.learner.adam_betas) == ("mine", 4, (0.8, 0.9))
    assert config.model.architecture["pad_token_id"] == 0


BAD_INPUT = [
    (["run", "grpo", "rollout.grup_size=2"], "rollout.grup_size", "2"),
    (["run", "grpo", "rollout.group_size=1"], "rollout.group_size", "1"),
    (["run", "grpo", "seed=many"], "seed", "many"),
    (["run", "no_such_job"], "job", "no_such_job"),
    (["run", "grpo", "--run-id", "../elsewhere"], "--run-id", "../elsewhere"),
    (["run", "grpo", "--run-id", "latest"], "--run-id", "latest"),
    (["run", "grpo", "~seed"], "seed", "nothing"),
    (["config", "grpo", "model=no_such"], "model", "no_such"),
    (["resume", "no_such_run"], "run", "no_such_run"),
    (["status", "no_such_run"], "run", "no_such_run"),
    (["run"], "command line", "orchestrator run --json"),
    (["run", "grpo", "--no-such-option"], "command line", "orchestrator run grpo --no-such-option --json"),
    (["no_such_command"], "command line", "orchestrator no_such_command --json"),
    (["rollouts", "x", "--step", "two"], "command line", "orchestrator rollouts x --step two --json"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "key", "value"), BAD_INPUT)
def test_bad_input_starts_nothing_and_exits_2(
    call: Call, started: Started, tmp_path: Path, arguments: list[str], key: str, value: str
) -> None:
    answer = call(*arguments, "--json")
    assert answer.code == 2
    assert set(answer.json) == {"error", "key", "value", "allowed", "hint"}
    assert (answer.json["key"], answer.json["value"]) == (key, value)
    assert answer.json["error"]
    assert started == []
    assert not (tmp_path / "runs").exists()
    person = call(*arguments)
    assert (person.code, person.out) == (2, "")
    assert person.err.startswith("orchestrator: ")


@pytest.mark.slow
def test_resume_finds_the_run_and_forwards_overrides(
    call: Call, started: Started, recorded_run: RunDirectory
) -> None:
    assert call("resume", "20261124", "steps=9").code == 4
    assert started == [("resume", RUN_ID, ["steps=9"], recorded_run.path.parent)]


@pytest.mark.slow
def test_runs_and_status_have_the_documented_json_keys(call: Call, recorded_run: RunDirectory) -> None:
    [run] = call("runs", "--json").json
    assert {"run_id", "job", "state", "purpose", "started", "ended"} <= set(run)
    assert (run["run_id"], run["state"], run["started"]) == (RUN_ID, "done", "2026-11-24T06:57:08Z")
    status = call("status", "latest", "--json").json
    assert {"run_id", "job", "state", "why", "step", "steps", "metrics", "history"} <= set(status)
    assert status["history"]["reward/mean"] == [[1, 0.25], [2, 0.5]]
    assert status["metrics"] == {"reward/mean": 0.5}


@pytest.mark.slow
def test_runs_and_status_are_tables_for_people(call: Call, recorded_run: RunDirectory) -> None:
    assert RUN_ID in call("runs").out
    status = call("status", RUN_ID).out
    assert "step 2 of 2" in status
    assert "reward/mean" in status


@pytest.mark.slow
def test_runs_prints_one_line_for_each_run_on_a_terminal_of_80_columns(
    call: Call, recorded_run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    recorded_run.append_metrics(3, {"accuracy/heldout": 0.873, "cost/usd": 0.0123}, AT_NS)
    recorded_run.write_state(RunState.FAILED, "a long reason, " * 20 + "[/red] \x1b[31m", AT_NS)
    pipeline = RunDirectory(tmp_path / "runs" / "20261124-065700-r1_demo-ffff")
    pipeline.create()
    pipeline.begin(job="r1_demo", purpose="final", steps=0, at_ns=AT_NS - 1, stages=["grpo"])
    lines = call("runs").out.splitlines()
    assert [line.split() for line in lines] == [
        ["run", "state", "step", "accuracy", "cost"],
        [RUN_ID, "failed", "3", "87.3%", "0.012"],
        [pipeline.run_id, "running", "0"],
    ]
    assert max(map(len, lines)) <= 80


def test_without_runs_json_is_an_empty_list_and_text_a_sentence(call: Call) -> None:
    assert call("runs", "--json").json == []
    assert "no runs" in call("runs").out


@pytest.mark.slow
def test_output_dir_selects_the_folder_of_runs(
    call: Call, recorded_run: RunDirectory, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    assert call("runs", "--json", "--output-dir", str(elsewhere)).json == []
    assert len(call("runs", "--json", "--output-dir", str(recorded_run.path.parent)).json) == 1


@pytest.mark.slow
def test_rollouts_are_those_of_the_newest_or_the_requested_step(
    call: Call, recorded_run: RunDirectory
) -> None:
    assert {row["step"] for row in call("rollouts", "latest", "--json").json} == {2}
    rows = call("rollouts", "latest", "--step", "1", "--json").json
    assert [row["reward"] for row in rows] == [0.5, 1.1, 0.0, 0.25, 0.75]
    assert rows[0]["response"] == "<think>wait, 3+6-2=7</think>"
    worst = call("rollouts", "latest", "--worst", "2", "--json").json
    assert [row["reward"] for row in worst] == [0.0, 0.25]


@pytest.mark.slow
def test_rollouts_for_people_show_prompt_response_and_reward(call: Call, recorded_run: RunDirectory) -> None:
    shown = call("rollouts", "latest", "--worst", "1").out
    for text in (
        "3,6,2=7 [bold]",
        "<think>wait, 3+6-2=7</think>",
        "reward 0, wrong",
        "checks itself",
        "1 of",
    ):
        assert text in shown


def test_rollouts_of_a_step_that_was_not_recorded(call: Call, recorded_run: RunDirectory) -> None:
    answer = call("rollouts", "latest", "--step", "5", "--json")
    assert (answer.code, answer.json["key"], answer.json["allowed"]) == (2, "--step", "1-2")
    assert call("rollouts", "latest", "--heldout", "--json").code == 2


@pytest.mark.slow
def test_rollouts_that_could_not_be_scored(call: Call, recorded_run: RunDirectory) -> None:
    assert call("rollouts", "latest", "--failed", "--json").json == []
    failure = {
        **rollout(1, 0.0),
        "accuracy": None,
        "grade": "crashed",
        "reason": "bad: KeyError: 'tests'",
        "traceback": "Traceback (most recent call last):\n  line 1, in bad\nKeyError: 'tests'\n",
    }
    (recorded_run.rollouts / "failed-reward-0.jsonl").write_text(json.dumps(failure) + "\n")
    assert call("rollouts", "latest", "--failed", "--json").json == [failure]
    assert call("rollouts", "latest", "--failed", "--step", "2", "--json").json == []
    shown = call("rollouts", "latest", "--failed").out
    for text in ("KeyError: 'tests'", "line 1, in bad", "<think>wait, 3+6-2=7</think>"):
        assert text in shown


def test_the_reason_of_a_failed_rollout_is_not_cut_off(
    call: Call, recorded_run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    reason = "judge: not a finite number: " + "nan " * 20 + "end"
    failure = {**rollout(1, 0.0), "accuracy": None, "grade": "invalid", "reason": reason, "traceback": ""}
    (recorded_run.rollouts / "failed-reward-0.jsonl").write_text(json.dumps(failure) + "\n")
    shown = call("rollouts", "latest", "--failed").out
    assert "invalid: judge: not a finite number" in shown
    assert "end" in shown.split("nan nan")[-1]
    assert "--worst" not in shown


def test_logs_show_the_log_and_the_events(call: Call, recorded_run: RunDirectory) -> None:
    answer = call("logs", "latest", "--json").json
    assert answer["lines"] == ["one", "two"]
    assert answer["events"] == [{"event": "worker_lost", "time_ns": AT_NS, "worker": "rollout-0"}]
    assert call("logs", "latest", "--tail", "1", "--json").json["lines"] == ["two"]
    assert "worker_lost: worker rollout-0" in call("logs", "latest").out


def test_logs_show_what_workers_logged_and_scorers_printed(call: Call, recorded_run: RunDirectory) -> None:
    recorded_run.worker_logs.mkdir()
    (recorded_run.worker_logs / "reward-0.log").write_text("loaded\nSEEN \x1b[31m{}\n")
    answer = call("logs", "latest", "--tail", "1", "--json").json
    assert answer["workers"] == {"reward-0": ["SEEN \x1b[31m{}"]}
    assert call("logs", "latest").out.splitlines()[:5] == [
        "one",
        "two",
        "==> reward-0 <==",
        "loaded",
        "SEEN \\x1b[31m{}",
    ]


def test_logs_of_a_pipeline_include_its_newest_stage(
    call: Call, recorded_run: RunDirectory, tmp_path: Path
) -> None:
    pipeline = RunDirectory(tmp_path / "runs" / "20261124-065700-r1_demo-ffff")
    pipeline.create()
    pipeline.begin(job="r1_demo", purpose="final", steps=0, at_ns=AT_NS, stages=["grpo"])
    pipeline.add_stage("grpo", RUN_ID)
    recorded_run.worker_logs.mkdir()
    (recorded_run.worker_logs / "reward-0.log").write_text("SEEN\n")
    answer = call("logs", pipeline.run_id, "--json").json
    assert answer["workers"] == {"reward-0": ["SEEN"]}
    assert [event["event"] for event in answer["events"]] == ["worker_lost"]


@pytest.mark.slow
@pytest.mark.parametrize("command", [("resume",), ("watch",), ("models", "export")])
def test_a_run_of_another_version_is_named_as_one(
    call: Call, recorded_run: RunDirectory, tmp_path: Path, command: tuple[str, ...]
) -> None:
    config = yaml.safe_load(recorded_run.config.read_text())
    del config["algorithm"]["dual_clip"], config["model"]["base_model"]
    config["weights"]["backend"] = "auto"
    recorded_run.config.write_text(yaml.safe_dump(config))
    answer = call(*command, RUN_ID, *(["DIR"] if command[0] == "models" else []))
    assert answer.code == 2
    assert "was written by another version of orchestrator" in answer.err
    assert "it lacks model.base_model, algorithm.dual_clip;" in answer.err
    assert "this version does not know weights.backend." in answer.err
    for reader in ("status", "logs", "rollouts"):
        assert call(reader, RUN_ID).code == 0


@pytest.mark.parametrize(
    ("state", "code"),
    [(RunState.DONE, 0), (RunState.FAILED, 1), (RunState.BUDGET, 3), (RunState.DRAINED, 4)],
)
def test_watch_returns_the_exit_code_of_the_run(
    call: Call, recorded_run: RunDirectory, state: RunState, code: int
) -> None:
    recorded_run.write_state(state, "for a reason", AT_NS)
    answer = call("watch", RUN_ID, "--json")
    assert (answer.code, answer.json["state"]) == (code, state.value)
    assert call("watch", RUN_ID).code == code


def test_watch_waits_for_the_end(
    call: Call, recorded_run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded_run.begin(job="grpo", purpose="debug", steps=2, at_ns=AT_NS)
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            recorded_run.write_state(RunState.DONE, "", AT_NS)

    monkeypatch.setattr(follow.time, "sleep", sleep)
    assert call("watch", RUN_ID, "--json", "--every", "2").code == 0
    assert looks == [2.0, 2.0, 2.0]


def test_stop_only_interrupts_the_process_of_the_run(call: Call, recorded_run: RunDirectory) -> None:
    script = (
        "import signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n    print('up', flush=True)\n    time.sleep(300)\n"
        "except KeyboardInterrupt:\n    raise SystemExit(4)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        record = recorded_run.begin(job="grpo", purpose="debug", steps=2, at_ns=AT_NS)
        stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        identity = replace(ProcessIdentity.current(), pid=process.pid, start_ticks=int(stat[19]))
        write_atomically(recorded_run.state, replace(record, process=identity).to_json())
        answer = call("stop", RUN_ID, "--json")
        assert (answer.code, answer.json["pid"], answer.json["signal"]) == (0, process.pid, "SIGINT")
        assert process.wait(timeout=200) == 4
    assert "is not running: it is failed" in call("stop", RUN_ID, "--json").json["error"]


def test_stop_rejects_runs_that_it_cannot_stop(
    call: Call, recorded_run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(pid: int, number: int) -> None:
        raise AssertionError(f"signal {signal.Signals(number)} sent to {pid}")

    monkeypatch.setattr(follow.os, "kill", kill)
    assert "is not running: it is done" in call("stop", RUN_ID, "--json").json["error"]
    record = recorded_run.begin(job="grpo", purpose="debug", steps=2, at_ns=AT_NS)
    elsewhere = replace(ProcessIdentity.current(), host="another host", boot_id="another boot")
    write_atomically(recorded_run.state, replace(record, process=elsewhere).to_json())
    answer = call("stop", RUN_ID, "--json")
    assert answer.code == 2
    assert "another machine or container (another host)" in answer.json["error"]


def test_doctor_lists_what_is_installed_and_what_to_do(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = call("doctor", "--json")
    assert {"python", "torch", "ray", "deepspeed", "disk", "cpus", "gpu"} <= {
        check["check"] for check in answer.json
    }
    assert all(set(check) == {"check", "ok", "detail", "remedy"} for check in answer.json)
    monkeypatch.setattr(preflight, "SHARED_MEMORY_BYTES", 1 << 60)
    without = {check["check"]: check for check in call("doctor", "--json").json}
    assert without["shared memory"]["ok"] is False
    assert "--shm-size" in without["shared memory"]["remedy"]
    assert call("doctor").code == 1


def test_the_cost_commands_have_their_own_parser(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import orchestrator.cli.cost.app

    seen: list[list[str]] = []

    def ledger(*, args: list[str], prog_name: str, standalone_mode: bool) -> int:
        seen.append(args)
        return 3

    monkeypatch.setattr(orchestrator.cli.cost.app, "app", ledger)
    assert call("cost", "wrap", "team=x", "--", "sleep", "--json", "1").code == 3
    assert call("cost", "--help").code == 3
    assert seen == [["wrap", "team=x", "--", "sleep", "--json", "1"], ["--help"]]


def test_a_file_that_cannot_be_written_is_reported_in_one_sentence(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "state.json"))

    monkeypatch.setattr("orchestrator.cli.read.list_runs", lambda output_dir, as_json: refuse(output_dir))
    answer = call("runs")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == f"orchestrator: {tmp_path / 'state.json'}: Permission denied.\n"


def test_errors_have_no_colour_codes(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(output_dir: Path, as_json: bool) -> int:
        raise OrchestratorError("rollout-0 was lost: \x1b[36mray::RolloutActor\x1b[39m")

    monkeypatch.setattr("orchestrator.cli.read.list_runs", fail)
    assert call("runs").err == "orchestrator: rollout-0 was lost: ray::RolloutActor\n"
    assert call("runs", "--json").json["error"] == "rollout-0 was lost: ray::RolloutActor"
