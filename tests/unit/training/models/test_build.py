"""Building models from scratch, from a folder and from a package. Errors name the setting that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, DeepseekV3ForCausalLM

from orchestrator.errors import ConfigError
from orchestrator.training.models import folder
from orchestrator.training.models.build import build_model, build_tokenizer
from orchestrator.training.models.config import ModelConfig

CONF = Path(__file__).parents[4] / "conf" / "model"


def config_of(name: str, **changes: Any) -> ModelConfig:
    values = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return ModelConfig.model_validate(values | changes)


TINY = config_of("tiny_moe")
PACKAGE = config_of("smollm2_135m")


def test_tiny_moe_has_the_configured_architecture_and_size():
    model = build_model(TINY, seed=0)
    assert isinstance(model, DeepseekV3ForCausalLM)
    assert sum(parameter.numel() for parameter in model.parameters()) == 317_344
    assert {key: getattr(model.config, key) for key in TINY.architecture if key != "rope_parameters"} == {
        key: value for key, value in TINY.architecture.items() if key != "rope_parameters"
    }
    assert model.config.max_position_embeddings == TINY.context and model.config.vocab_size == 103
    assert model.config.eos_token_id == build_tokenizer(TINY).eos_token_id
    assert not model.training


def test_the_seed_determines_the_weights_without_touching_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (build_model(TINY, seed).state_dict() for seed in (0, 0, 1))
    assert torch.rand(1) == expected
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_the_selection_bias_keeps_its_precision():
    model = build_model(config_of("tiny_moe", dtype="bfloat16"), seed=0)
    state = model.state_dict()
    assert state.pop("model.layers.1.mlp.gate.e_score_correction_bias").dtype == torch.float32
    assert state["lm_head.weight"].dtype == torch.bfloat16
    assert build_model(TINY, seed=0, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_an_export_loads_in_plain_transformers_with_the_same_logits(tmp_path: Path):
    model, tokenizer = build_model(TINY, seed=0), build_tokenizer(TINY)
    folder.save(model, tokenizer, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path).encode("<think>1+2=")])
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("family", ["pretrained", "deepseek_v3_from_scratch"])
def test_weights_are_loaded_from_the_path(tmp_path: Path, family: str):
    folder.save(build_model(TINY, seed=3), build_tokenizer(TINY), tmp_path)
    config = config_of("tiny_moe", path=str(tmp_path), family=family)
    loaded, saved = build_model(config, seed=0).state_dict(), build_model(TINY, seed=3).state_dict()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
    assert build_tokenizer(config).encode("1+2") == build_tokenizer(TINY).encode("1+2")


def test_a_folder_with_another_shape_than_configured_is_rejected(tmp_path: Path):
    folder.save(build_model(TINY, seed=0), build_tokenizer(TINY), tmp_path)
    wrong = config_of("tiny_moe", path=str(tmp_path), architecture={"hidden_size": 128})
    with pytest.raises(ConfigError, match=r"model.architecture.hidden_size: got 128, allowed: 64"):
        build_model(wrong, seed=0)


@pytest.mark.parametrize("build", [lambda config: build_model(config, 0), build_tokenizer])
def test_a_missing_folder_is_named(tmp_path: Path, build: Any):
    for path, why in (
        (str(tmp_path / "nowhere"), "no such folder"),
        (str(tmp_path), "is missing"),
        (None, "null"),
    ):
        with pytest.raises(ConfigError, match=why) as caught:
            build(config_of("pretrained", path=path))
        assert caught.value.key == "model.path"


def test_a_folder_without_weights_is_named(tmp_path: Path):
    folder.save(build_model(TINY, seed=0), build_tokenizer(TINY), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model.path: .* allowed: a folder with the model's weights"):
        build_model(config_of("tiny_moe", path=str(tmp_path)), seed=0)


@pytest.mark.parametrize(
    ("architecture", "key"),
    [({"hiden_size": 64}, "hiden_size"), ({"vocab_size": 64}, "vocab_size"), ({"hidden_size": "wide"}, "")],
)
def test_an_architecture_that_does_not_exist_is_refused(architecture: dict[str, Any], key: str):
    with pytest.raises(ConfigError) as caught:
        build_model(config_of("tiny_moe", architecture=architecture), seed=0)
    assert caught.value.key == f"model.architecture.{key}".rstrip(".")


def test_a_context_that_the_model_cannot_hold_is_refused(tmp_path: Path):
    folder.save(build_model(TINY, seed=0), build_tokenizer(TINY), tmp_path)
    with pytest.raises(ConfigError, match=r"model.context: got 512, allowed: at most 256"):
        build_model(config_of("tiny_moe", path=str(tmp_path), context=512), seed=0)


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        (None, "<distribution>:<file inside it>"),
        ("no-such-distribution:model.gguf", "an installed distribution"),
        ("numpy:model.gguf", "a file of the distribution numpy"),
    ],
)
def test_a_package_without_the_model_is_reported(package: str | None, allowed: str):
    with pytest.raises(ConfigError, match=allowed) as caught:
        build_tokenizer(config_of("smollm2_135m", package=package))
    assert caught.value.key == "model.package"
