"""The engine `vllm` in its own environment, against transformers in the learner's: log-probs before and after
weight updates, rollouts that an update interrupts, and aborted ones.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from orchestrator.config.compose import compose
from orchestrator.training.models.build import build_model
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.rollouts.engines.vllm import PROVEN_FAMILIES
from tests.fakes.chat_models import chat_tokenizer
from tests.support.vllm_engine import vllm_python
from tests.support.vllm_side import PROMPT, weights_of

pytestmark = [pytest.mark.engines, pytest.mark.slow, pytest.mark.long]
SIDE = Path(__file__).resolve().parents[1] / "support" / "vllm_side.py"
LOGPROB_GAP = 1e-4
SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}
TINY: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True),
}


def tiny(family: str, folder: Path) -> ModelConfig:
    """A model with random weights."""
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(TINY[family], dtype=torch.float32).save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    overrides = ["model=pretrained", f"model.path={folder}", "model.context=256", "model.dtype=float32"]
    return compose("grpo", overrides).model


class Sampled:
    """What vLLM sampled, and the models that it sampled from."""

    def __init__(self, model: ModelConfig, found: dict[str, Any]) -> None:
        self.found, self._config = found, model

    def gap(self, row: dict[str, Any], version: int, *, first: int = 0, temperature: float = 1.0) -> float:
        """The largest difference from transformers' log-probs under `version`, from token `first` on."""
        model = build_model(self._config, seed=0)
        model.load_state_dict(dict(weights_of(self._config, version)))
        ids = torch.tensor([PROMPT + row["tokens"]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(PROMPT) - 1 : -1].float() / temperature
        expected = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(row["tokens"])[:, None])[:, 0]
        return float((expected - torch.tensor(row["logprobs"])).abs()[first:].max())

    def largest_gap(self, name: str, version: int, *, temperature: float = 1.0) -> float:
        rows = self.found[name]
        assert all(row["versions"] == [version] * len(row["tokens"]) for row in rows)
        return max(self.gap(row, version, temperature=temperature) for row in rows)


@pytest.fixture(scope="module", params=["smollm2_135m", *TINY])
def sampled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sampled:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param in TINY:
        model = tiny(request.param, folder)
    else:
        model = compose("grpo", [f"model={request.param}", "model.context=256"]).model
    rollout = compose("grpo", ["rollout.engine=vllm", "rollout.max_batch_rows=16"]).rollout
    files = [folder / name for name in ("side-model.json", "side-rollout.json", "found.json")]
    files[0].write_text(model.model_dump_json())
    files[1].write_text(rollout.model_dump_json())
    command = [str(vllm_python()), "-m", "tests.support.vllm_side", *map(str, files)]
    ran = subprocess.run(
        command, cwd=SIDE.parents[2], capture_output=True, text=True, timeout=500, check=False
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return Sampled(model, json.loads(files[2].read_text()))


def test_every_proven_family_is_here() -> None:
    assert set(TINY) == set(PROVEN_FAMILIES)


def test_logprobs_are_those_of_the_learner_before_and_after_an_update(sampled: Sampled) -> None:
    assert sampled.largest_gap("initial", 0) <= LOGPROB_GAP
    assert sampled.largest_gap("cooler", 0, temperature=0.6) <= LOGPROB_GAP
    assert sampled.largest_gap("updated", 1) <= LOGPROB_GAP
    assert max(sampled.gap(row, 0) for row in sampled.found["updated"]) > 0.1, "the update must show"


def test_the_rollouts_of_a_group_differ_and_keep_their_length(sampled: Sampled) -> None:
    tokens = [tuple(row["tokens"]) for row in sampled.found["initial"]]
    assert len(set(tokens)) == len(tokens)
    assert all(len(row["tokens"]) == 120 for row in sampled.found["continue"]["before"])


@pytest.mark.parametrize(("how", "version"), [("continue", 2), ("recompute", 3), ("finish", 4)])
def test_an_update_under_way_gives_every_token_its_version(sampled: Sampled, how: str, version: int) -> None:
    found = sampled.found[how]
    for row in found["before"]:
        old, versions = row["versions"].count(version - 1), row["versions"]
        assert versions == [version - 1] * old + [version] * (len(versions) - old)
        if how == "finish":
            assert old == len(versions)
            assert sampled.gap(row, version - 1) <= LOGPROB_GAP
        else:
            assert 0 < old < len(versions)
        if how == "recompute":
            assert sampled.gap(row, version, first=old) <= LOGPROB_GAP, "the cache is of the new weights"
    assert all(set(row["versions"]) == {version} for row in found["after"])
    assert max(sampled.gap(row, version) for row in found["after"]) <= LOGPROB_GAP, "no cache of old weights"


def test_the_engine_goes_on_after_rollouts_were_aborted(sampled: Sampled) -> None:
    (row,) = sampled.found["after_abort"]
    assert sampled.gap(row, 4) <= LOGPROB_GAP
    assert sampled.found["unfinished_after_abort"] == 0
