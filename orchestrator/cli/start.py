"""Commands that compose a config: run, resume, config."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from orchestrator.cli.output import print_json
from orchestrator.config import compose as config
from orchestrator.config.run_config import RunConfig, json_schema
from orchestrator.errors import ConfigError
from orchestrator.runs.status import LATEST, find_run

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""It names a folder, and is typed on command lines."""


def all_overrides(overrides: Sequence[str] | None, config_dir: Path | None, address: str | None) -> list[str]:
    """The overrides as given, and the options that are short for one."""
    found = list(overrides or ())
    if config_dir is not None:
        found.append(f"hydra.searchpath=[{config.quoted(f'file://{config_dir.resolve()}')}]")
    if address is not None:
        found.append(f"cluster.address={config.quoted(address)}")
    return found


def run(job: str, overrides: Sequence[str], run_id: str | None, as_json: bool) -> int:
    """Compose, then run; the exit code."""
    if run_id is not None and (run_id == LATEST or not RUN_ID.fullmatch(run_id)):
        raise ConfigError(
            "--run-id", run_id, "letters, digits, . _ and -, beginning with one of the first two"
        )
    composed = config.compose(job, overrides)
    from orchestrator.launch import launcher

    return launcher.run(composed, run_id=run_id, json_output=as_json)


def resume(reference: str, overrides: Sequence[str], output_dir: Path, as_json: bool) -> int:
    """Find the run and go on with it; the exit code."""
    found = find_run(output_dir, reference)
    from orchestrator.launch import launcher

    return launcher.resume(found.run_id, list(overrides), found.path.parent, as_json)


def print_config(job: str, overrides: Sequence[str], stage: str | None, as_json: bool) -> int:
    """The config of a job, or of one stage of a pipeline, as YAML or JSON."""
    composed = config.compose(job, overrides)
    if stage is not None:
        composed = _stage(composed, stage)
    if as_json:
        print_json(composed.to_json())
    else:
        print(composed.to_yaml(), end="")  # noqa: T201
    return 0


def print_schema(overrides: Sequence[str]) -> int:
    """The JSON Schema of a config."""
    if overrides:
        raise ConfigError("command line", " ".join(overrides), "nothing after `config schema`")
    print(json_schema(), end="")  # noqa: T201
    return 0


def _stage(composed: RunConfig, name: str) -> RunConfig:
    for stage in composed.stages:
        if stage.name == name:
            return config.compose_stage(stage)
    names = ", ".join(stage.name for stage in composed.stages)
    raise ConfigError("--stage", name, names or "none", "" if names else f"job {composed.job} is no pipeline")
