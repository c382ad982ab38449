"""Determines the published model that a run started from, and its licence."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import yaml

from orchestrator.training.models.config import ModelConfig

LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "NOTICE")
PROVENANCE = "provenance.json"
"""File in an exported folder that records the origin of its model."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)")


@dataclass(frozen=True, slots=True)
class Origin:
    """The model that the first run started from."""

    name: str
    """Its id on the Hugging Face hub if known, otherwise the name of its folder or config. Never a path."""
    kind: str
    """`from scratch`, `folder` or `package`."""
    where: str | None
    """The folder's name, or `<distribution> <version>`."""
    licence: str | None
    """The publisher's identifier; None if there is none."""
    licence_files: tuple[Path, ...]

    @property
    def hub_id(self) -> str | None:
        """The name if it is an id of the Hugging Face hub."""
        return self.name if _HUB_ID.fullmatch(self.name) else None


def origin_of(config: ModelConfig) -> Origin:
    """Return the origin of the initial model of the first run. Unknown facts are None."""
    if config.path is not None:
        folder = Path(config.path)
        name = config.base_model or _published_name(folder) or folder.resolve().name
        return Origin(name, "folder", folder.name, _licence_of_folder(folder), _licence_files(folder))
    if config.package is not None:
        return _package(config.base_model or config.name, config.package.partition(":")[0])
    return Origin(config.name, "from scratch", None, None, ())


def _published_name(folder: Path) -> str | None:
    """Find the published name in the folder: in the provenance of our own export, the path of the hub's
    cache, or transformers' config.
    """
    exported = _read_json(folder / PROVENANCE).get("origin")
    if isinstance(exported, dict) and isinstance(exported.get("name"), str):
        return str(exported["name"])
    cached = next(filter(None, map(_HUB_CACHE.fullmatch, folder.resolve().parts)), None)
    if cached is not None:
        return f"{cached.group(1)}/{cached.group(2)}"
    name = _read_json(folder / "config.json").get("_name_or_path")
    return name if isinstance(name, str) and _HUB_ID.fullmatch(name) else None


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file is missing or contains anything else."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _package(name: str, package: str) -> Origin:
    try:
        found = distribution(package)
    except PackageNotFoundError:
        return Origin(name, "package", package, None, ())
    named = [found.metadata[key] for key in ("License-Expression", "License") if key in found.metadata]
    files = [Path(str(found.locate_file(path))) for path in found.files or () if path.name in LICENCE_FILES]
    return Origin(name, "package", f"{package} {found.version}", named[0] if named else None, tuple(files))


def _licence_of_folder(folder: Path) -> str | None:
    """Read `license` from the front matter of the folder's model card."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return None
    try:
        front = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return None
    licence = front.get("license") if isinstance(front, dict) else None
    return None if licence is None else str(licence)


def _licence_files(folder: Path) -> tuple[Path, ...]:
    return tuple(folder / name for name in LICENCE_FILES if (folder / name).is_file())
