"""The public functions of this package: prepare a job, or the next attempt at one, and run it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.clock import Clock, SystemClock
from orchestrator.config import compose as configs
from orchestrator.config.run_config import RunConfig
from orchestrator.errors import StateError
from orchestrator.launch.assembly import placement_of
from orchestrator.launch.checks import check
from orchestrator.launch.job_runner import JobRunner, RunContext, stage_directory
from orchestrator.launch.prepared import PreparedJob, PreparedStage
from orchestrator.launch.stop import StopSwitch
from orchestrator.launch.view import NoViews, Views
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.record import RunState, new_run_id
from orchestrator.training.cluster.session import ray_session

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended. `why` is empty if it succeeded."""

    config: RunConfig
    directory: RunDirectory
    state: RunState
    why: str

    @property
    def exit_code(self) -> int:
        """0 done, 1 failed, 3 stopped by a budget, 4 drained."""
        return self.state.exit_code


def prepare(config: RunConfig, run_id: str | None = None, clock: Clock | None = None) -> PreparedJob:
    """Check a job and load its data. Nothing is started and nothing is written.

    Raises InputError for every problem that can be detected before the start, StateError if
    the run exists already.
    """
    clock = clock or SystemClock()
    directory = RunDirectory(config.output_dir / (run_id or new_run_id(config.job, clock.now_ns())))
    directory.require_new()
    stages = {stage.name: configs.compose_stage(stage) for stage in config.stages}
    return PreparedJob(config, directory, _prepare_stages(stages or {"": config}, clock, resumes=False), None)


def prepare_resume(
    directory: RunDirectory,
    overrides: Sequence[str] = (),
    clock: Clock | None = None,
    on_wait: Callable[[str], None] = logger.info,
) -> PreparedJob:
    """Check the next attempt at a run. Nothing is started and nothing is written.

    If the run's process is on another machine, this function first waits to see whether it is alive, and
    reports that to `on_wait`. Raises InputError for overrides that a resumed run does not allow, and
    StateError for a run that another process executes, for a finished run, and for a stage of a pipeline.
    """
    record = directory.record()
    if record.pipeline:
        raise StateError(
            f"Run {record.run_id} is a stage of a pipeline. Resume the pipeline:"
            f" orchestrator resume {record.pipeline}."
        )
    before = configs.load(directory.config)
    config = configs.with_resume_overrides(before, overrides)
    if record.state is RunState.DONE and config == before:
        raise StateError(
            f"Run {record.run_id} has finished all its steps. To train longer: orchestrator resume"
            f" {record.run_id} steps=N."
        )
    fence = directory.wait_until_free(on_wait)
    stages = {stage.name: _stage_to_resume(directory, before, config, stage.name) for stage in config.stages}
    prepared = _prepare_stages(stages or {"": config}, clock or SystemClock(), resumes=True)
    return PreparedJob(config, directory, prepared, fence)


def run(
    prepared: PreparedJob,
    views: Views | None = None,
    stop: StopSwitch | None = None,
    clock: Clock | None = None,
) -> Outcome:
    """Run a prepared job to its end, whether it succeeds or fails.

    Raises StateError or InputError without changing anything if it cannot start, and `runs.lease.FencedError`
    if another process took over the run in the meantime.
    """
    context = RunContext(views or NoViews(), stop or StopSwitch(), clock or SystemClock())
    config, directory = prepared.config, prepared.directory
    if prepared.fence is None:
        directory.create()
    job = JobRunner.begin(config, directory, prepared, context, fence=prepared.fence or 0)
    with _run_log(directory):
        state, why = asyncio.run(_run_job(job, prepared, context))
    return Outcome(config, directory, state, why)


def end_at_once(prepared: PreparedJob, why: str) -> None:
    """Record that this process is about to exit without an orderly stop. Thread-safe."""
    at_ns = SystemClock().now_ns()
    directories = [prepared.directory]
    if prepared.directory.state.exists():
        stages = prepared.directory.record().stages
        directories += [prepared.directory.stage_run(stage.run_id) for stage in stages if stage.run_id]
    for directory in directories:
        if directory.state.exists() and directory.record().state is RunState.RUNNING:
            directory.write_state(RunState.FAILED, why, at_ns)


async def _run_job(job: JobRunner, prepared: PreparedJob, context: RunContext) -> tuple[RunState, str]:
    cluster = prepared.config.cluster
    with context.stop.attached(prepared.config.checkpoint.drain_seconds):
        return await job.run(lambda: ray_session(cluster, prepared.slots))


def _prepare_stages(
    configs_by_stage: Mapping[str, RunConfig], clock: Clock, *, resumes: bool
) -> dict[str, PreparedStage]:
    return {
        name: PreparedStage(config, placement_of(config), check(config, clock, resumes=resumes))
        for name, config in configs_by_stage.items()
    }


def _stage_to_resume(directory: RunDirectory, before: RunConfig, config: RunConfig, name: str) -> RunConfig:
    """A stage that has begun keeps the config it began with, whatever `conf/` says today, except for
    the new overrides.
    """
    (stage,) = (stage for stage in config.stages if stage.name == name)
    begun = stage_directory(directory, name)
    if begun is None:
        return configs.compose_stage(stage)
    (old,) = (stage for stage in before.stages if stage.name == name)
    return configs.with_resume_overrides(configs.load(begun.config), stage.overrides[len(old.overrides) :])


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
