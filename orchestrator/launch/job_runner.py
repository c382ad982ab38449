"""A job on this machine or a cluster: what `jobs/*.py` drives, with every part connected."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from orchestrator.clock import Clock
from orchestrator.config import compose as configs
from orchestrator.config.run_config import RunConfig
from orchestrator.errors import BudgetStopError, DrainedError, OrchestratorError
from orchestrator.launch import outcome as run_report
from orchestrator.launch.attempt import Attempt, StopSwitch, train
from orchestrator.launch.tracking import tracked
from orchestrator.runs.directory import RunDirectory, RunState, write_atomically
from orchestrator.training.manifest import build_manifest
from orchestrator.training.pipeline import Job, TrainedModel, find_job
from orchestrator.training.prompts.source import EpochPrompts

logger = logging.getLogger(__name__)

SessionFactory = Callable[[], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """What a job will do, settled and checked before it starts: by stage, or under "" for a run that trains
    itself.
    """

    configs: Mapping[str, RunConfig]
    prompts: Mapping[str, EpochPrompts]


@dataclass(frozen=True, slots=True)
class RunContext:
    """Who watches and who may stop the job."""

    console: Console
    switch: StopSwitch
    clock: Clock


class JobRunner(Job):
    """One run: its job's file drives it; a stage of a pipeline is a `JobRunner` of its own."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        prepared: PreparedJob,
        context: RunContext,
        pipeline: str = "",
        stage: str = "",
    ) -> None:
        self._config, self._directory, self._prepare, self._context = config, directory, prepared, context
        self._pipeline, self._stage = pipeline, stage

    async def run(self, session: SessionFactory = contextlib.nullcontext) -> int:
        """Run the job's file inside `session` and write down how it ended; the exit code."""
        directory, config = self._directory, self._config
        write_atomically(directory.config, config.to_yaml())
        record = directory.begin(
            job=config.job,
            purpose=config.purpose,
            steps=config.steps,
            at_ns=self._context.clock.now_ns(),
            pipeline=self._pipeline,
            stage=self._stage,
            stages=[stage.name for stage in config.stages],
        )
        self._attempt = record.attempt
        self._write_manifest()
        with tracked(config, directory, self._pipeline, self._context.clock, self._notify) as self._tracker:
            code = await self._run_file(session)
            for path in run_report.write(directory, config):
                self._tracker.log_artifact(path)
        return code

    async def _run_file(self, session: SessionFactory) -> int:
        """Run the job's file; how it ended is in state.json when this returns."""
        state, why, code = RunState.DONE, "", 0
        try:
            with session():
                await find_job(self._config.job)(self)
        except OrchestratorError as error:
            state, why, code = _ended(error)
            logger.error("the run ended: %s", error)
        except (Exception, asyncio.CancelledError) as error:
            logger.exception("the run ended with an error that nobody foresaw")
            state, why, code = RunState.FAILED, f"{type(error).__name__}: {error}", 1
        self._directory.write_state(state, why, self._context.clock.now_ns())
        return code

    def _notify(self, text: str) -> None:
        self._context.console.print(text, markup=False, highlight=False, soft_wrap=True)

    async def train(self) -> TrainedModel:
        """Run the training loop with this run's own config."""
        attempt = Attempt(
            config=self._config,
            directory=self._directory,
            prompts=self._prepare.prompts[self._stage],
            number=self._attempt,
            resumed=self._attempt > 1,
            pipeline=self._pipeline,
            stage=self._stage,
        )
        await train(attempt, self._tracker, self._context.switch, self._context.console, self._context.clock)
        return _model_of(self._directory)

    async def stage(self, name: str, start_from: TrainedModel | None = None) -> TrainedModel:
        """Carry out a stage as a run of its own, go on with it, or take what it made before.

        Raises how it ended.
        """
        config = self._prepare.configs[name]
        directory = stage_directory(self._directory, name)
        if directory is None:
            directory = RunDirectory(self._directory.path.parent / f"{self._directory.run_id}-{name}")
            directory.create()
            if start_from is not None:
                model = config.model.model_copy(update={"path": str(start_from.path)})
                config = config.model_copy(update={"model": model})
        elif directory.record().state is RunState.DONE and _same(config, configs.load(directory.config)):
            return _model_of(directory)
        self._directory.add_stage(name, directory.run_id)
        pipeline = self._directory.run_id
        await JobRunner(config, directory, self._prepare, self._context, pipeline, name).run()
        _raise_unless_done(name, directory)
        return _model_of(directory)

    def _write_manifest(self) -> None:
        model = self._config.model.path
        used = [self._stage] if self._stage else list(self._prepare.prompts)
        manifest = build_manifest(
            run_id=self._directory.run_id,
            seed=self._config.seed,
            data_sha256={name or self._config.job: self._prepare.prompts[name].digest for name in used},
            model=Path(model) if model else None,
        )
        write_atomically(self._directory.manifest, json.dumps(manifest, indent=2) + "\n")


def stage_directory(pipeline: RunDirectory, name: str) -> RunDirectory | None:
    """The run directory of a stage that was begun; None for one that was not."""
    if not pipeline.state.exists():
        return None
    for stage in pipeline.record().stages:
        if stage.name == name and stage.run_id is not None:
            found = RunDirectory(pipeline.path.parent / stage.run_id)
            return found if found.state.exists() else None
    return None


def _same(config: RunConfig, written: RunConfig) -> bool:
    """Whether a config is the one that was written, passwords apart."""
    return config.to_json() == written.to_json()


def _model_of(directory: RunDirectory) -> TrainedModel:
    return TrainedModel(directory.model.resolve(), directory.run_id)


def _ended(error: OrchestratorError) -> tuple[RunState, str, int]:
    """How a run that was started ends by this error. A config that turns out wrong on the way is a failure:
    exit 2 says that nothing was started.
    """
    if isinstance(error, BudgetStopError):
        return RunState.BUDGET, str(error), error.exit_code
    if isinstance(error, DrainedError):
        return RunState.DRAINED, str(error), error.exit_code
    return RunState.FAILED, str(error), 1


def _raise_unless_done(stage: str, directory: RunDirectory) -> None:
    record = directory.record()
    if record.state is RunState.DONE:
        return
    message = f"stage {stage} ({directory.run_id}) {record.state.value}: {record.why}"
    errors = {RunState.BUDGET: BudgetStopError, RunState.DRAINED: DrainedError}
    raise errors.get(record.state, OrchestratorError)(message)
