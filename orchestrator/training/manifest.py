"""The provenance of a run, so that its result can be reproduced or checked: commit,
packages, machine, data, model, seeds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("rl-orchestrator", "ray", "torch", "deepspeed", "transformers", "mlflow", "hydra-core", "numpy")


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Facts about a run's config that reports show. They are written when the run starts, because the
    components that a config names may not be installed where a report is made.
    """

    model: str = ""
    task: str = ""
    plays_back: bool = False
    """Whether the rollouts are worked solutions rather than samples of the model."""
    reflection_pattern: str = ""
    """The regular expression that marks rollouts as reflecting on their own reasoning."""
    settings: tuple[tuple[str, str], ...] = ()
    """(name, value) of the settings that affect the result, in words:
    `("batch", "32 prompts x 8 rollouts")`.
    """

    @property
    def title(self) -> str:
        """Title of the report, such as `tiny_moe on countdown`."""
        return f"{self.model} on {self.task}" if self.model and self.task else "Learning curve"

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> RunFacts:
        """Read the facts from a manifest; empty for manifests of older versions."""
        found = manifest.get("facts", {})
        return cls(
            model=found.get("model", ""),
            task=found.get("task", ""),
            plays_back=found.get("plays_back", False),
            reflection_pattern=found.get("reflection_pattern", ""),
            settings=tuple((name, value) for name, value in found.get("settings", ())),
        )


def build_manifest(
    *,
    run_id: str,
    seed: int,
    data_sha256: Mapping[str, str],
    model: Path | None,
    facts: RunFacts,
) -> dict[str, Any]:
    """Build the manifest as JSON.

    `data_sha256` holds the digests of the prompts by stage. `model` is the folder of the initial model;
    None for random initialisation.
    """
    return {
        "run_id": run_id,
        "git": _git(Path(__file__).parent),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": {"system": platform.platform(), "cpus": os.cpu_count(), "processor": _processor()},
        "seed": seed,
        "data_sha256": dict(data_sha256),
        "facts": dataclasses.asdict(facts),
        "model": None if model is None else {"path": str(model), "files_sha256": folder_digest(model)},
    }


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files, sorted by name."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(folder)).encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git(folder: Path) -> dict[str, Any] | None:
    """The commit and whether the working tree had changes; None outside a checkout (an installed wheel)."""
    try:
        commit = _run_git(folder, "rev-parse", "HEAD")
        changed = _run_git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "uncommitted_changes": bool(changed)}


def _run_git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
