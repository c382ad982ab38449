"""Every file under `conf/` composes, validates, loads its data and produces a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.app import run_command_line
from orchestrator.config.compose import ConfigFiles, conf_dir

ROOT = conf_dir().parent
FILES = sorted(path.relative_to(conf_dir()) for path in conf_dir().rglob("*.yaml"))
JOBS = set(ConfigFiles.named_by().jobs())

JOB_OF = {
    "algorithm/sft": "sft",
    "rollout/worked_solutions": "sft",
    "experiment/demo_sft": "sft",
}
"""The job that a file is for, if it is not `grpo`."""

ALSO = {
    "algorithm/sft": ["rollout=worked_solutions"],
    "price_book/aws": ["cluster=gpu"],
    "task/jsonl_example": ["evaluation.prompts=16"],
    "model/pretrained": ["model.path={folder}"],
}
"""Overrides that a file needs, because it leaves a value to the user or only fits certain hardware."""

LLAMA = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
GPU_MODELS = {"deepseek_v2_lite", "deepseek_v3", "granite_moe", "mixtral_8x7b", "qwen3_30b_a3b"}


def words_for(file: Path) -> list[str]:
    """The command line that uses the file."""
    name = file.with_suffix("").as_posix()
    if file.parent == Path():
        return [name if name in JOBS else "grpo"]
    also = ["cluster=gpu"] if file.stem in GPU_MODELS else ALSO.get(name, [])
    without_data = [] if file.parent.name in ("task", "experiment") else ["--prompt-tokens", "40"]
    return [JOB_OF.get(name, "grpo"), f"{file.parent}={file.stem}", *also, *without_data]


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.as_posix())
def test_a_file_composes_validates_loads_its_data_and_produces_a_plan(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)  # docs/examples/arithmetic.jsonl is named relative to it
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    words = [word.format(folder=tmp_path) for word in words_for(file)]
    code = run_command_line(["plan", *words, "--json"])
    plan: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == 0, plan
    assert plan["gpus"] >= 1 and plan["step_seconds"] > 0
    assert float(plan["accelerator_hours"]["expected"]) > 0 and float(plan["amount"]["expected"]) > 0
    assert plan["parameters"]["total"] > 0


@pytest.mark.slow
def test_active_parameters_are_shown_with_and_without_the_embedding(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """DeepSeek publishes 2.4 billion for V2-Lite (without) and 37 billion for V3 (with)."""
    words = ["plan", "grpo", "cluster=gpu", "model=deepseek_v2_lite", "--prompt-tokens", "40"]
    assert run_command_line([*words, "--json"]) == 0
    parameters = json.loads(capsys.readouterr().out)["parameters"]
    assert parameters["active"] == 2_661_150_208
    assert parameters["active_without_embedding"] == parameters["active"] - 102_400 * 2048
    assert run_command_line(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{parameters['active']:,} active per token" in shown
    assert "without the embedding" in shown


def test_all_config_files_are_tested() -> None:
    groups = {file.parent.as_posix() for file in FILES}
    assert {"task", "model", "cluster", "price_book", "algorithm", "experiment", "reward"} <= groups
