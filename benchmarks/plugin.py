"""Makes engines of these benchmarks known to the orchestrator, in the way in which pip would install them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def environment_with_engines(folder: Path, module: str, engines: Mapping[str, str]) -> dict[str, str]:
    """Environment variables under which the engines are installed: `engines` maps their names to factories in
    `module`. `folder` takes the metadata of the package.
    """
    metadata = folder / "benchmark_engines-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: benchmark-engines\nVersion: 0.1\n")
    points = "".join(f"{name} = {module}:{factory}\n" for name, factory in engines.items())
    (metadata / "entry_points.txt").write_text(f"[orchestrator.engine]\n{points}")
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}
