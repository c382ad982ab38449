"""Published shapes, as their authors' config.json files say them (only the keys that decide sizes)."""

from __future__ import annotations

from typing import Any

import yaml

from orchestrator.config import conf_dir


def published(name: str) -> dict[str, Any]:
    """`model.architecture` of conf/model/<name>.yaml."""
    return yaml.safe_load((conf_dir() / "model" / f"{name}.yaml").read_text())["architecture"]
