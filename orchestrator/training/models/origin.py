"""Where a model came from before any run trained it, and under which licence."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import yaml

from orchestrator.training.models.config import ModelConfig

LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "NOTICE")


@dataclass(frozen=True, slots=True)
class Origin:
    """The model that the first run started from."""

    name: str
    kind: str
    """`from scratch`, `folder` or `package`."""
    where: str | None
    """The folder, or `<distribution> <version>`."""
    licence: str | None
    """As its publisher names it; None if nobody said."""
    licence_files: tuple[Path, ...]


def origin_of(config: ModelConfig) -> Origin:
    """The origin of a model that no run of ours has trained before. What can't be found out is None."""
    if config.path is not None:
        folder = Path(config.path)
        return Origin(config.name, "folder", str(folder), _licence_of_folder(folder), _licence_files(folder))
    if config.package is not None:
        return _package(config.name, config.package.partition(":")[0])
    return Origin(config.name, "from scratch", None, None, ())


def _package(name: str, package: str) -> Origin:
    try:
        found = distribution(package)
    except PackageNotFoundError:
        return Origin(name, "package", package, None, ())
    named = [found.metadata[key] for key in ("License-Expression", "License") if key in found.metadata]
    files = [Path(str(found.locate_file(path))) for path in found.files or () if path.name in LICENCE_FILES]
    return Origin(name, "package", f"{package} {found.version}", named[0] if named else None, tuple(files))


def _licence_of_folder(folder: Path) -> str | None:
    """`license` in the front matter of the folder's model card."""
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
