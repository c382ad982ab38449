"""Runs a job's file from `jobs/`: one run, and each stage of a pipeline as a run of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.clock import Clock
from orchestrator.config import compose as configs
from orchestrator.config.run_config import RunConfig
from orchestrator.errors import BudgetStopError, DrainedError, OrchestratorError, without_colours
from orchestrator.launch import final_report
from orchestrator.launch.assembly import run_facts
from orchestrator.launch.attempt import Attempt, train
from orchestrator.launch.prepared import PreparedJob
from orchestrator.launch.session import SessionFactory, open_session
from orchestrator.launch.stop import StopSwitch
from orchestrator.launch.tracking import tracked
from orchestrator.launch.view import Views
from orchestrator.runs.directory import RunDirectory
from orchestrator.runs.lease import FencedError
from orchestrator.runs.record import RunRecord, RunState
from orchestrator.training.manifest import build_manifest
from orchestrator.training.pipeline import Job, TrainedModel, find_job
from orchestrator.training.telemetry.tracker import Tracker

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunContext:
    """Views, stop switch and clock shared by all stages."""

    views: Views
    stop: StopSwitch
    clock: Clock


class JobRunner:
    """One run that this process has begun: `begin` makes it the only writer of the run directory, and `run`
    runs the job's file.
    """

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        prepared: PreparedJob,
        context: RunContext,
        record: RunRecord,
    ) -> None:
        self._config, self._directory, self._prepared, self._context = config, directory, prepared, context
        self._record = record

    @classmethod
    def begin(
        cls,
        config: RunConfig,
        directory: RunDirectory,
        prepared: PreparedJob,
        context: RunContext,
        *,
        fence: int,
        pipeline: str = "",
        stage: str = "",
    ) -> JobRunner:
        """Become the only writer of the run directory, whose newest lease is number `fence`.

        Raises StateError without changing anything if another process was faster.
        """
        record = directory.begin(
            job=config.job,
            purpose=config.purpose,
            steps=config.steps,
            at_ns=context.clock.now_ns(),
            pipeline=pipeline,
            stage=stage,
            stages=[stage.name for stage in config.stages],
            fence=fence,
        )
        directory.keep_lease(context.stop.cancel)
        return cls(config, directory, prepared, context, record)

    async def run(self, session: SessionFactory | None = None) -> tuple[RunState, str]:
        """Run the job's file, inside the session if there is one. Returns the final state
        and the reason for it.

        Raises FencedError if another process took the run over.
        """
        directory, config, context = self._directory, self._config, self._context
        try:
            directory.write_config(config.to_yaml())
            self._write_manifest()
            with tracked(
                config, directory, self._record.pipeline, context.clock, context.views.message
            ) as tracker:
                job = _RunningJob(config, directory, self._prepared, context, self._record, tracker)
                state, why = await self._run_file(job, session)
                directory.write_state(state, why, context.clock.now_ns())
                for path in final_report.write(directory, config):
                    tracker.log_artifact(path)
            return state, why
        finally:
            directory.release()

    async def _run_file(self, job: Job, session: SessionFactory | None) -> tuple[RunState, str]:
        try:
            async with contextlib.AsyncExitStack() as opened:
                if session is not None:
                    with self._context.stop.starting():
                        await opened.enter_async_context(open_session(session))
                await find_job(self._config.job)(job)
        except FencedError:
            raise
        except OrchestratorError as error:
            stopped = isinstance(error, BudgetStopError | DrainedError)
            logger.log(logging.WARNING if stopped else logging.ERROR, "the run ended: %s", error)
            return _ended(error), without_colours(str(error))
        except (Exception, asyncio.CancelledError) as error:
            logger.exception("the run failed with an unexpected error")
            return RunState.FAILED, without_colours(f"{type(error).__name__}: {error}")
        return RunState.DONE, ""

    def _write_manifest(self) -> None:
        model = self._config.model.path
        stages = self._prepared.stages
        used = [self._record.stage] if self._record.stage else list(stages)
        manifest = build_manifest(
            run_id=self._directory.run_id,
            seed=self._config.seed,
            data_sha256={name or self._config.job: stages[name].prompts.digest for name in used},
            model=Path(model) if model else None,
            facts=run_facts(self._config),
        )
        self._directory.write_manifest(json.dumps(manifest, indent=2) + "\n")


@dataclass(frozen=True, slots=True)
class _RunningJob(Job):
    """What a job's file works with: a run that has begun and is tracked."""

    config: RunConfig
    directory: RunDirectory
    prepared: PreparedJob
    context: RunContext
    record: RunRecord
    tracker: Tracker

    async def train(self) -> TrainedModel:
        """Run the training loop with this run's own config."""
        number, stage = self.record.attempt, self.record.stage
        attempt = Attempt(
            # The config of this run: a stage that starts from another one's model differs from
            # the prepared one.
            prepared=replace(self.prepared.stages[stage], config=self.config),
            directory=self.directory,
            number=number,
            resumed=number > 1,
            pipeline=self.record.pipeline,
            stage=stage,
        )
        await train(attempt, self.tracker, self.context.stop, self.context.views, self.context.clock)
        return _model_of(self.directory)

    async def stage(self, name: str, start_from: TrainedModel | None = None) -> TrainedModel:
        """Run or continue a stage as a separate run, or return its model if it is already done.

        Raises an error if the stage does not end as done.
        """
        self.context.stop.raise_if_asked()
        config = self.prepared.stages[name].config
        directory = stage_directory(self.directory, name)
        if directory is None:
            directory = self.directory.stage_run(f"{self.directory.run_id}-{name}")
            directory.create()
            if start_from is not None:
                model = config.model.model_copy(update={"path": str(start_from.path)})
                config = config.model_copy(update={"model": model})
        elif directory.record().state is RunState.DONE and _same(config, configs.load(directory.config)):
            return _model_of(directory)
        self.directory.add_stage(name, directory.run_id)
        runner = JobRunner.begin(
            config,
            directory,
            self.prepared,
            self.context,
            fence=directory.newest_fence(),  # the pipeline's writer may take the leases of its stages
            pipeline=self.directory.run_id,
            stage=name,
        )
        state, why = await runner.run()
        if state is not RunState.DONE:
            raise _error_for(state)(f"Stage {name} ({directory.run_id}) {state.value}: {why}")
        return _model_of(directory)


def stage_directory(pipeline: RunDirectory, name: str) -> RunDirectory | None:
    """The run directory of a stage; None if the stage has not started."""
    if not pipeline.state.exists():
        return None
    for stage in pipeline.record().stages:
        if stage.name == name and stage.run_id is not None:
            found = pipeline.stage_run(stage.run_id)
            return found if found.state.exists() else None
    return None


def _same(config: RunConfig, written: RunConfig) -> bool:
    """Whether two configs are equal apart from passwords, which are not stored."""
    return config.to_json() == written.to_json()


def _model_of(directory: RunDirectory) -> TrainedModel:
    return TrainedModel(directory.model.resolve(), directory.run_id)


def _ended(error: OrchestratorError) -> RunState:
    """The state of a run that ended with this error. A config error after the start counts as a failure,
    because exit code 2 would mean that nothing was started.
    """
    if isinstance(error, BudgetStopError):
        return RunState.BUDGET
    return RunState.DRAINED if isinstance(error, DrainedError) else RunState.FAILED


def _error_for(state: RunState) -> type[OrchestratorError]:
    """Inverse of `_ended`."""
    if state is RunState.BUDGET:
        return BudgetStopError
    return DrainedError if state is RunState.DRAINED else OrchestratorError
