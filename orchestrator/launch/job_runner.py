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
from orchestrator.launch import outcome
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


class JobRunner(Job):
    """One run. Call `begin`, then `run`, which calls the job's file; that calls `train` and `stage`."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        prepared: PreparedJob,
        context: RunContext,
        pipeline: str = "",
        stage: str = "",
    ) -> None:
        self._config, self._directory, self._prepared, self._context = config, directory, prepared, context
        self._pipeline, self._stage = pipeline, stage
        self._record: RunRecord | None = None
        self._tracker: Tracker | None = None

    def begin(self, fence: int) -> None:
        """Become the only writer of the run directory, whose newest lease is number `fence`.

        Raises StateError without changing anything if another process was faster.
        """
        self._record = self._directory.begin(
            job=self._config.job,
            purpose=self._config.purpose,
            steps=self._config.steps,
            at_ns=self._context.clock.now_ns(),
            pipeline=self._pipeline,
            stage=self._stage,
            stages=[stage.name for stage in self._config.stages],
            fence=fence,
        )
        self._directory.keep_lease(self._context.stop.cancel)

    async def run(self, session: SessionFactory | None = None) -> tuple[RunState, str]:
        """Run the job's file, inside the session if there is one. Returns the final state
        and the reason for it.

        Raises FencedError if another process took the run over.
        """
        directory, config = self._directory, self._config
        try:
            directory.write_config(config.to_yaml())
            self._write_manifest()
            with tracked(
                config, directory, self._pipeline, self._context.clock, self._context.views.message
            ) as self._tracker:
                state, why = await self._run_file(session)
                directory.write_state(state, why, self._context.clock.now_ns())
                for path in outcome.write(directory, config):
                    self._tracker.log_artifact(path)
            return state, why
        finally:
            directory.release()

    async def _run_file(self, session: SessionFactory | None) -> tuple[RunState, str]:
        try:
            async with contextlib.AsyncExitStack() as opened:
                if session is not None:
                    with self._context.stop.starting():
                        await opened.enter_async_context(open_session(session))
                await find_job(self._config.job)(self)
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

    async def train(self) -> TrainedModel:
        """Run the training loop with this run's own config."""
        assert self._record is not None and self._tracker is not None, "begin and run come first"
        number = self._record.attempt
        attempt = Attempt(
            # The config of this run: a stage that starts from another one's model differs from
            # the prepared one.
            prepared=replace(self._prepared.stages[self._stage], config=self._config),
            directory=self._directory,
            number=number,
            resumed=number > 1,
            pipeline=self._pipeline,
            stage=self._stage,
        )
        await train(attempt, self._tracker, self._context.stop, self._context.views, self._context.clock)
        return _model_of(self._directory)

    async def stage(self, name: str, start_from: TrainedModel | None = None) -> TrainedModel:
        """Run or continue a stage as a separate run, or return its model if it is already done.

        Raises an error if the stage does not end as done.
        """
        self._context.stop.raise_if_asked()
        config = self._prepared.stages[name].config
        directory = stage_directory(self._directory, name)
        if directory is None:
            directory = self._directory.stage_run(f"{self._directory.run_id}-{name}")
            directory.create()
            if start_from is not None:
                model = config.model.model_copy(update={"path": str(start_from.path)})
                config = config.model_copy(update={"model": model})
        elif directory.record().state is RunState.DONE and _same(config, configs.load(directory.config)):
            return _model_of(directory)
        self._directory.add_stage(name, directory.run_id)
        pipeline = self._directory.run_id
        job = JobRunner(config, directory, self._prepared, self._context, pipeline, name)
        job.begin(directory.newest_fence())  # the holder of the pipeline's lease may take those of its stages
        state, why = await job.run()
        if state is not RunState.DONE:
            raise _error_for(state)(f"Stage {name} ({directory.run_id}) {state.value}: {why}")
        return _model_of(directory)

    def _write_manifest(self) -> None:
        model = self._config.model.path
        stages = self._prepared.stages
        used = [self._stage] if self._stage else list(stages)
        manifest = build_manifest(
            run_id=self._directory.run_id,
            seed=self._config.seed,
            data_sha256={name or self._config.job: stages[name].prompts.digest for name in used},
            model=Path(model) if model else None,
            facts=run_facts(self._config),
        )
        self._directory.write_manifest(json.dumps(manifest, indent=2) + "\n")


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
