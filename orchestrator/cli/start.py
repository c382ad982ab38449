"""Commands that compose a config: run, resume, config."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli import stop_signals, terminal
from orchestrator.cli.output import print_json
from orchestrator.config import compose
from orchestrator.config.run_config import RunConfig, json_schema
from orchestrator.errors import ConfigError, DrainedError
from orchestrator.runs.record import LONGEST_RUN_ID, is_run_id
from orchestrator.runs.status import LATEST, find_run, status_document

if TYPE_CHECKING:
    from orchestrator.launch import PreparedJob


def all_overrides(overrides: Sequence[str] | None, config_dir: Path | None, address: str | None) -> list[str]:
    """The given overrides, followed by those that --config-dir and --address imply."""
    found = list(overrides or ())
    if config_dir is not None:
        found.append(f"hydra.searchpath=[{compose.quoted(f'file://{config_dir.resolve()}')}]")
    if address is not None:
        found.append(f"cluster.address={compose.quoted(address)}")
    return found


def run(job: str, overrides: Sequence[str], run_id: str | None, as_json: bool) -> int:
    """Compose the config and run the job. Returns the exit code."""
    if run_id is not None and (run_id == LATEST or not is_run_id(run_id)):
        allowed = f"up to {LONGEST_RUN_ID} letters, digits, '.', '_' and '-', starting with a letter or digit"
        raise ConfigError("--run-id", run_id, allowed)
    composed = compose.compose(job, overrides)
    from orchestrator import launch

    return _run(launch.prepare(composed, run_id), as_json)


def resume(reference: str, overrides: Sequence[str], output_dir: Path, as_json: bool) -> int:
    """Find the run and continue it. Returns the exit code."""
    found = find_run(output_dir, reference)
    from orchestrator import launch

    prepared = launch.prepare_resume(found, overrides, on_wait=lambda text: terminal.say(text, err=True))
    return _run(prepared, as_json)


def _run(prepared: PreparedJob, as_json: bool) -> int:
    from orchestrator import launch
    from orchestrator.cli.job_view import TerminalViews, print_outcome

    views, stop = TerminalViews(), launch.StopSwitch()
    run_id = prepared.directory.run_id

    def on_stop(name: str) -> None:
        stop.ask(DrainedError(f"Stopped by {name}. Continue with: orchestrator resume {run_id}"))
        views.message(f"{name}: stopping after a checkpoint. A second signal stops immediately, without one.")

    def on_abort(name: str) -> None:
        launch.end_at_once(
            prepared,
            f"Stopped immediately by a second {name}, without a new checkpoint."
            f" Continue from the last one with: orchestrator resume {run_id}",
        )

    stop_signals.connect(on_stop, on_abort)
    outcome = launch.run(prepared, views, stop)
    with contextlib.suppress(OSError):  # the terminal may have gone away
        if as_json:
            print_json(status_document(outcome.directory))
        else:
            print_outcome(outcome)
    return outcome.exit_code


def print_config(job: str, overrides: Sequence[str], stage: str | None, as_json: bool) -> int:
    """Print the config of a job, or of one stage of a pipeline, as YAML or JSON."""
    composed = compose.compose(job, overrides)
    if stage is not None:
        composed = _stage(composed, stage)
    if as_json:
        print_json(composed.to_json())
    else:
        terminal.say(composed.to_yaml(), nl=False)
    return 0


def print_schema(overrides: Sequence[str]) -> int:
    """Print the JSON Schema of a config."""
    if overrides:
        raise ConfigError("command line", " ".join(overrides), "nothing after `config schema`")
    terminal.say(json_schema(), nl=False)
    return 0


def _stage(composed: RunConfig, name: str) -> RunConfig:
    for stage in composed.stages:
        if stage.name == name:
            return compose.compose_stage(stage)
    names = ", ".join(stage.name for stage in composed.stages)
    raise ConfigError(
        "--stage", name, names or "none", "" if names else f"job {composed.job} is not a pipeline"
    )
