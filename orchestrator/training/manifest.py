"""What a run was made of, so that it can be repeated or doubted: commit, packages, machine,
data, model, seeds.
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
    """What a report says of a run's config. Whoever starts the run writes them down, because a report can't
    interpret a config: the components that it names may not be installed where the report is made.
    """

    model: str = ""
    task: str = ""
    plays_back: bool = False
    """The rollouts are worked solutions, not the model's own."""
    reflection_pattern: str = ""
    """The regular expression by which a rollout is known to check itself."""
    settings: tuple[tuple[str, str], ...] = ()
    """(name, value) of what decides a result, in words: `("batch", "32 prompts x 8 rollouts")`."""

    @property
    def title(self) -> str:
        """`tiny_moe on countdown`."""
        return f"{self.model} on {self.task}" if self.model and self.task else "Learning curve"

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> RunFacts:
        """The facts in a manifest; none in one of an older version."""
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
    """The manifest as JSON.

    `data_sha256` are the prompts' digests by stage; `model` is the folder that the run starts from; None for
    a random start.
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
    """SHA-256 over the names and contents of a folder's files, in order of their names."""
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
    """Commit and whether the tree had changes; None outside a checkout (an installed wheel)."""
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
