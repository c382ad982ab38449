"""Runs the engine `vllm` in its own environment, for the tests that compare it with transformers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from orchestrator.config.compose import compose
from orchestrator.training.cluster.environments import default_interpreter
from orchestrator.training.models.build import build_model
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.rollouts.engines import ENGINES
from tests.fakes.chat_models import chat_tokenizer
from tests.support.vllm_side import PROMPT, weights_of

ROOT = Path(__file__).resolve().parents[2]
LONGEST_SECONDS = 580
BATCHED = "+rollout.engine_options.max_batched_tokens=256"
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
        self._model, self._version = build_model(model, seed=0), -1

    def gap(
        self,
        row: dict[str, Any],
        version: int,
        *,
        first: int = 0,
        temperature: float = 1.0,
        prompt: list[int] = PROMPT,
    ) -> float:
        """The largest difference from transformers' log-probs under `version`, from token `first` on."""
        if version != self._version:
            self._model.load_state_dict(dict(weights_of(self._config, version)))
            self._version = version
        ids = torch.tensor([prompt + row["tokens"]])
        with torch.no_grad():
            logits = self._model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float() / temperature
        expected = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(row["tokens"])[:, None])[:, 0]
        return float((expected - torch.tensor(row["logprobs"])).abs()[first:].max())

    def largest_gap(self, name: str, version: int, *, temperature: float = 1.0) -> float:
        rows = self.found[name]
        assert all(row["versions"] == [version] * len(row["tokens"]) for row in rows)
        return max(self.gap(row, version, temperature=temperature) for row in rows)

    def largest_gap_after(self, how: str, version: int) -> float:
        """As `largest_gap`, for the rollouts that were started after an interrupting update."""
        rows = self.found[how]["after"]
        assert all(set(row["versions"]) == {version} for row in rows)
        return max(self.gap(row, version) for row in rows)


def vllm_python() -> Path:
    """The interpreter that `make engines` creates: in this checkout, or beside this Python's environment."""
    environment = ENGINES.facts("vllm").environment
    assert environment is not None
    places = (ROOT / f".venv-{environment.name}" / "bin" / "python", default_interpreter(environment))
    found = next((path for path in places if path.exists()), None)
    assert found is not None, "make engines creates the environment of the engine vllm"
    return found


def sample(model: ModelConfig, folder: Path, *overrides: str, device: str = "cpu") -> Sampled:
    """Run the scenario of `vllm_side` with this model; `folder` takes its files."""
    rollout = compose(
        "grpo", ["rollout.engine=vllm", "rollout.max_batch_rows=16", BATCHED, *overrides]
    ).rollout
    files = [folder / name for name in ("side-model.json", "side-rollout.json", "found.json")]
    files[0].write_text(model.model_dump_json())
    files[1].write_text(rollout.model_dump_json())
    command = [str(vllm_python()), "-m", "tests.support.vllm_side", *map(str, files), device]
    ran = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST_SECONDS, check=False
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return Sampled(model, json.loads(files[2].read_text()))
