"""The environment of the engine `vllm`, for the tests that run it."""

from __future__ import annotations

from pathlib import Path

from orchestrator.training.cluster.environments import default_interpreter
from orchestrator.training.rollouts.engines import ENGINES

ROOT = Path(__file__).resolve().parents[2]


def vllm_python() -> Path:
    """The interpreter that `make engines` creates: in this checkout, or beside this Python's environment."""
    environment = ENGINES.facts("vllm").environment
    assert environment is not None
    places = (ROOT / f".venv-{environment.name}" / "bin" / "python", default_interpreter(environment))
    found = next((path for path in places if path.exists()), None)
    assert found is not None, "make engines creates the environment of the engine vllm"
    return found
