"""Finds the directory with the config files."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """The `conf/` directory: inside the installed package, or at the top level of the repository."""
    package = Path(__file__).resolve().parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"
