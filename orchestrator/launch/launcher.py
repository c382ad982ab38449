"""Starts and resumes runs: what `orchestrator run` and `orchestrator resume` call."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

from rich.console import Console

from orchestrator.cli.output import print_json
from orchestrator.clock import SystemClock
from orchestrator.config import compose as configs
from orchestrator.config.run_config import RunConfig
from orchestrator.errors import ConfigError, DrainedError
from orchestrator.launch import outcome as run_report
from orchestrator.launch.attempt import StopSwitch
from orchestrator.launch.job_runner import JobRunner, PreparedJob, RunContext, stage_directory
from orchestrator.launch.prepare import check, placement_of
from orchestrator.runs.directory import RunDirectory, RunState, new_run_id
from orchestrator.runs.status import find_run, status_document
from orchestrator.training.cluster.session import ray_session

logger = logging.getLogger(__name__)


def run(config: RunConfig, *, run_id: str | None, json_output: bool) -> int:
    """Carry out a job from its start; the exit code. Raises ConfigError, and then nothing was started."""
    clock = SystemClock()
    directory = RunDirectory(config.output_dir / (run_id or new_run_id(config.job, clock.now_ns())))
    stages = {stage.name: configs.compose_stage(stage) for stage in config.stages}
    prepared = _prepare(stages or {"": config}, resumes=False)
    directory.create()
    return _run_and_report(config, directory, prepared, json_output)


def resume(run_id: str, overrides: Sequence[str], output_dir: Path, json_output: bool) -> int:
    """Go on with a run from its last checkpoint; the exit code. Raises ConfigError if it can't be resumed."""
    directory = find_run(output_dir, run_id)
    record = directory.record()
    if record.pipeline:
        raise ConfigError(
            "run", run_id, f"its pipeline, {record.pipeline}", "a stage is resumed by its pipeline"
        )
    before = configs.load(directory.config)
    config = configs.with_resume_overrides(before, overrides)
    if record.state is RunState.DONE and config == before:
        raise ConfigError("run", run_id, "a run that did not finish", "give it more steps: steps=N")
    stages = {stage.name: _stage_to_resume(directory, before, config, stage.name) for stage in config.stages}
    return _run_and_report(config, directory, _prepare(stages or {"": config}, resumes=True), json_output)


def _stage_to_resume(directory: RunDirectory, before: RunConfig, config: RunConfig, name: str) -> RunConfig:
    """A stage that was begun keeps the config it was begun with, whatever `conf/` says today, but for the new
    overrides.
    """
    (stage,) = (stage for stage in config.stages if stage.name == name)
    begun = stage_directory(directory, name)
    if begun is None:
        return configs.compose_stage(stage)
    (old,) = (stage for stage in before.stages if stage.name == name)
    return configs.with_resume_overrides(configs.load(begun.config), stage.overrides[len(old.overrides) :])


def _prepare(stages: dict[str, RunConfig], *, resumes: bool) -> PreparedJob:
    """Check every stage: what can be wrong is wrong now. Raises ConfigError."""
    clock = SystemClock()
    return PreparedJob(
        stages, {name: check(config, clock, resumes=resumes) for name, config in stages.items()}
    )


def _run_and_report(
    config: RunConfig, directory: RunDirectory, prepared: PreparedJob, json_output: bool
) -> int:
    with _run_log(directory):
        code = asyncio.run(_run_job(config, directory, prepared))
    if json_output:
        print_json(status_document(directory))
    else:
        run_report.print_outcome(directory, config, Console(file=sys.stdout))
    return code


async def _run_job(config: RunConfig, directory: RunDirectory, prepared: PreparedJob) -> int:
    context = RunContext(Console(stderr=True), StopSwitch(), SystemClock())
    slots = max(len(placement_of(stage).slots) for stage in prepared.configs.values())
    with _signals(context.switch):
        job = JobRunner(config, directory, prepared, context)
        return await job.run(lambda: ray_session(config.cluster, slots))


@contextlib.contextmanager
def _signals(switch: StopSwitch) -> Generator[None]:
    """SIGINT and SIGTERM ask for a checkpoint and an orderly end; a second one ends at once."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    def ask(name: str) -> None:
        if switch.asked:
            logger.warning("a second %s: ending at once", name)
            if task is not None:
                task.cancel()
            return
        switch.ask(DrainedError(f"{name}: stopped after a checkpoint; orchestrator resume goes on"))

    caught = (signal.SIGINT, signal.SIGTERM)
    for number in caught:
        loop.add_signal_handler(number, ask, number.name)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _run_log(directory: RunDirectory) -> Generator[None]:
    """The controller's log lines go to run.log, not between the lines of the live view."""
    handler = logging.FileHandler(directory.log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
