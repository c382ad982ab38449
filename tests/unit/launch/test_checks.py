"""Checks of a run before it starts."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from transformers import MistralConfig

from orchestrator.config.compose import compose
from orchestrator.errors import ConfigError
from orchestrator.launch.checks import check_engines, check_prices
from orchestrator.ledger.calendar import day_number

TODAY = day_number(date(2026, 11, 25))


@pytest.mark.parametrize("cluster", ["laptop", "gpu", "gpu_split"])
def test_every_shipped_cluster_has_prices_and_a_cluster_without_is_rejected(cluster: str) -> None:
    config = compose("grpo", [f"cluster={cluster}"])
    check_prices(config, TODAY, resumes=False)
    unpriced = config.model_copy(update={"cluster": config.cluster.model_copy(update={"sku": "none"})})
    with pytest.raises(ConfigError, match=r"cluster\.sku: got none"):
        check_prices(unpriced, TODAY, resumes=False)


def test_a_run_without_prices_is_rejected() -> None:
    """Its limit would never be reached, and its report would be empty."""
    with pytest.raises(ConfigError, match=r"cluster\.sku: got p5\.48xlarge, allowed: cpu-slot") as caught:
        check_prices(compose("grpo", ["cluster=gpu", "price_book=laptop"]), TODAY, resumes=False)
    assert "price_book=NAME" in str(caught.value)


@pytest.mark.slow
def test_a_price_must_be_valid_today() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.sku"):
        check_prices(compose("grpo", ["cluster=gpu"]), day_number(date(2020, 1, 1)), resumes=False)


@pytest.mark.slow
def test_a_resumed_run_with_an_expired_price_continues_unless_it_has_its_own_limit() -> None:
    before = day_number(date(2020, 1, 1))
    check_prices(compose("grpo", ["cluster=gpu"]), before, resumes=True)
    with pytest.raises(ConfigError, match=r"budget\.limit=null"):
        check_prices(compose("grpo", ["cluster=gpu", "budget.limit=1"]), before, resumes=True)


def mistral(folder: Path, window: int) -> str:
    """A folder with the config of a Mistral with a sliding window of `window` tokens, without weights."""
    MistralConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, sliding_window=window
    ).save_pretrained(folder)
    (folder / "model.safetensors").touch()
    return f"model.path={folder}"


def test_a_model_that_the_engine_cannot_serve_is_rejected_from_its_config(tmp_path: Path) -> None:
    words = ["model=pretrained", "model.context=512", "rollout.max_new_tokens=16"]
    folder = mistral(tmp_path, 511)
    check_engines(compose("grpo", [*words, folder]))
    architecture = json.loads((tmp_path / "config.json").read_text())
    layers = architecture["num_hidden_layers"]
    architecture |= {"layer_types": ["linear_attention"] * layers, "model_type": "qwen3_next"}
    (tmp_path / "config.json").write_text(json.dumps(architecture))
    with pytest.raises(ConfigError, match="it has layers of the kind linear_attention"):
        check_engines(compose("grpo", [*words, folder]))


def test_a_model_without_its_weights_is_refused(tmp_path: Path) -> None:
    config = compose("grpo", ["model=pretrained", "model.context=512", mistral(tmp_path, 512)])
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model\.safetensors is missing"):
        check_engines(config)
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "one.safetensors").touch()
    with pytest.raises(ConfigError, match=r"two\.safetensors is missing, 1 of 2 files"):
        check_engines(config)


def test_a_model_with_too_short_a_context_is_refused(tmp_path: Path) -> None:
    folder = mistral(tmp_path, 200_000)
    with pytest.raises(ConfigError, match=r"model\.context: got 200000, allowed: at most 131072"):
        check_engines(compose("grpo", ["model=pretrained", "model.context=200000", folder]))
