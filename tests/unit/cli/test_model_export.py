"""`orchestrator models export`: from a checkpoint to a folder, without Ray or DeepSpeed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from orchestrator.cli.app import run_command_line
from orchestrator.config.compose import compose
from orchestrator.runs.directory import RunDirectory
from orchestrator.training.checkpoints.format import commit, name_of
from orchestrator.training.models.build import build_model

RUN_ID = "20261124-065708-grpo-0a1b"
CONFIG = compose("grpo", ["tracking=none"])


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run with checkpoints of steps 2 and 4, in two shards each; step s has the weights of seed s."""
    output_dir = tmp_path_factory.mktemp("runs")
    run = RunDirectory(output_dir / RUN_ID)
    run.create()
    run.config.write_text(CONFIG.to_yaml())
    run.begin(job="grpo", purpose="debug", steps=4, at_ns=1)
    run.manifest.write_text(json.dumps({"data_sha256": {"grpo": "f" * 64}, "git": {"commit": "abc"}}))
    for step, accuracy in ((0, 0.125), (2, 0.25), (4, 0.5)):
        run.append_metrics(step, {"accuracy/heldout": accuracy}, step)
    for step in (2, 4):
        partial = run.checkpoints / "partial"
        partial.mkdir()
        write_shards(build_model(CONFIG.model, step), partial)
        commit(partial, run.checkpoints / name_of(step), {})
    return output_dir


def write_shards(model: PreTrainedModel, directory: Path) -> None:
    """The shards of two ranks as described in `shards.py`, with the first parameter split in the middle."""
    parameters = dict(model.named_parameters())
    owned: list[dict[str, Any]] = [{}, {}]
    for index, (name, parameter) in enumerate(parameters.items()):
        flat = parameter.detach().flatten()
        if index == 0:
            owned[0][f"{name}@0/master"], owned[1][f"{name}@1000/master"] = flat[:1000], flat[1000:]
        else:
            owned[index % 2][f"{name}@0/master"] = flat
        owned[index % 2][f"{name}@0/exp_avg"] = torch.zeros(1)
    state = model.state_dict()
    owned[0] |= {f"buffer/{name}": state[name] for name in state if name not in parameters}
    for rank, tensors in enumerate(owned):
        names = {key.rpartition("/")[0].rpartition("@")[0] for key in tensors if key.endswith("/master")}
        shapes = {name: list(parameters[name].shape) for name in names}
        metadata = {"format": "1", "rank": str(rank), "world_size": "2", "shapes": json.dumps(shapes)}
        copies = {key: value.clone() for key, value in tensors.items()}
        save_file(copies, directory / f"rank-{rank}-of-2.safetensors", metadata)


def export(output_dir: Path, target: Path, *words: str) -> int:
    return run_command_line(
        ["models", "export", RUN_ID, str(target), "--output-dir", str(output_dir), *words, "--json"]
    )


@pytest.fixture(scope="module")
def exported(output_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exported") / "model"
    assert export(output_dir, target) == 0
    return target


@pytest.mark.slow
def test_the_newest_checkpoint_loads_in_plain_transformers_bit_for_bit(exported: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(exported)
    expected = build_model(CONFIG.model, 4)
    ids = AutoTokenizer.from_pretrained(exported)("1+2=", return_tensors="pt").input_ids
    assert torch.equal(model(ids).logits, expected(ids).logits)
    assert model.generation_config.eos_token_id == expected.config.eos_token_id


def test_the_model_card_states_known_and_unknown_facts(exported: Path) -> None:
    _, front, text = (exported / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "other"
    assert "base_model" not in yaml.safe_load(front)
    assert "| held-out accuracy | 50.0% on task `countdown` (after step 4, greedy) |" in text
    assert "| cost | not in the ledger |" in text
    assert f"| run | `{RUN_ID}` |" in text
    assert "| `learner.learning_rate` | `0.0003` |" in text


def test_the_provenance_has_the_digest_of_every_file(exported: Path, output_dir: Path) -> None:
    provenance = json.loads((exported / "provenance.json").read_text())
    files = {path.name for path in exported.iterdir()} - {"provenance.json"}
    assert provenance["files"].keys() == files >= {"model.safetensors", "config.json", "tokenizer.json"}
    for name, entry in provenance["files"].items():
        assert entry["sha256"] == hashlib.sha256((exported / name).read_bytes()).hexdigest()
    assert provenance["checkpoint"]["name"] == "step-000004"
    manifest = output_dir / RUN_ID / "checkpoints" / "step-000004" / "manifest.json"
    assert provenance["checkpoint"]["manifest_sha256"] == hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert provenance["lineage"] == [RUN_ID]
    assert provenance["origin"] == {
        "name": "tiny_moe",
        "kind": "from scratch",
        "where": None,
        "licence": None,
    }
    assert provenance["git"] == {"commit": "abc"}


def test_another_step(output_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    assert export(output_dir, tmp_path / "model", "--step", "2") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["run_id"], document["step"], document["accuracy_heldout"]) == (RUN_ID, 2, 0.25)
    assert document["parameters"] == 317_344
    assert set(document["files"]) == {path.name for path in (tmp_path / "model").iterdir()}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    expected = build_model(CONFIG.model, 2).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_rejected_exports_write_nothing(
    output_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    for target, words, key, allowed in (
        (full, (), "DIR", "a folder that does not exist, or an empty one"),
        (tmp_path / "new", ("--step", "3"), "--step", "2, 4"),
    ):
        assert export(output_dir, target, *words) == 2
        error = json.loads(capsys.readouterr().out)
        assert (error["key"], error["allowed"]) == (key, allowed)
    assert [path.name for path in full.iterdir()] == ["mine.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_run_without_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(tmp_path / RUN_ID)
    run.create()
    run.config.write_text(CONFIG.to_yaml())
    run.begin(job="grpo", purpose="debug", steps=4, at_ns=1)
    assert export(tmp_path, tmp_path / "new") == 2
    assert json.loads(capsys.readouterr().out)["allowed"] == "a run with a checkpoint"


def test_a_damaged_checkpoint_is_an_error_and_leaves_nothing(
    output_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = output_dir / RUN_ID / "checkpoints" / "step-000002" / "rank-1-of-2.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert export(output_dir, tmp_path / "new", "--step", "2") == 1
    finally:
        shard.write_bytes(whole)
    assert "differs from its manifest" in json.loads(capsys.readouterr().out)["error"]
    assert list(tmp_path.iterdir()) == []


def test_exporting_does_not_need_the_plug_ins_of_the_run(
    output_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = output_dir / RUN_ID / "config.yaml"
    written = config.read_text()
    values = yaml.safe_load(written)
    values["algorithm"] |= {"loss": "theirs", "advantage": "theirs"}
    values["reward"]["components"] = {"theirs": 1.0, "their_package:scorer": 1.0}
    values["rollout"]["engine"] = values["evaluation"]["engine"] = "theirs"
    values["task"]["solutions"] = "theirs"
    config.write_text(yaml.safe_dump(values))
    try:
        assert export(output_dir, tmp_path / "model") == 0
    finally:
        config.write_text(written)
    assert "| `algorithm.loss` | `theirs` |" in (tmp_path / "model" / "README.md").read_text()
    assert json.loads(capsys.readouterr().out)["step"] == 4


@pytest.mark.slow
def test_neither_ray_nor_deepspeed_is_needed(output_dir: Path, tmp_path: Path) -> None:
    words = ["models", "export", RUN_ID, str(tmp_path / "model"), "--output-dir", str(output_dir)]
    program = (
        "import sys\n"
        "sys.modules['ray'] = sys.modules['deepspeed'] = None\n"
        "from orchestrator.cli.app import run_command_line\n"
        f"sys.exit(run_command_line({words!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tiny_moe, 317,344 parameters, step 4" in done.stdout
