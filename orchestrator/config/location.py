"""Where the config files are."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """The folder of config files: inside the installed package, or at the top of the repository."""
    package = Path(__file__).resolve().parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"
