"""Puts a run together: the only module that knows every context.

`run` and `resume` are what the commands call.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from rich.console import Console

from orchestrator import config as configs
from orchestrator.cli import run_report
from orchestrator.cli.assembly import check, placement_of
from orchestrator.cli.output import print_json
from orchestrator.cli.tracking import tracked
from orchestrator.cli.train import Attempt, StopSwitch, train
from orchestrator.clock import SystemClock
from orchestrator.errors import BudgetStopError, ConfigError, DrainedError, OrchestratorError
from orchestrator.run_config import RunConfig, StageConfig
from orchestrator.runs import find_run, status_document
from orchestrator.training.cluster.session import ray_session
from orchestrator.training.manifest import build_manifest
from orchestrator.training.pipeline import Job, TrainedModel, find_job
from orchestrator.training.prompts.source import EpochPrompts
from orchestrator.training.run_directory import RunDirectory, RunState, new_run_id, write_atomically

logger = logging.getLogger(__name__)
CLOCK = SystemClock()


def run(config: RunConfig, *, run_id: str | None, json_output: bool) -> int:
    """Carry out a job from its start; the exit code. Raises ConfigError, and then nothing was started."""
    prompts = _check_all(config)
    directory = RunDirectory(config.output_dir / (run_id or new_run_id(config.job, CLOCK.now_ns())))
    directory.create()
    return _carry_out(config, directory, prompts, resumed=False, json_output=json_output)


def resume(run_id: str, overrides: Sequence[str], output_dir: Path, json_output: bool) -> int:
    """Go on with a run from its last checkpoint; the exit code. Raises ConfigError if it can't be resumed."""
    directory = find_run(output_dir, run_id)
    record = directory.record()
    if record.pipeline:
        raise ConfigError(
            "run", run_id, f"its pipeline, {record.pipeline}", "a stage is resumed by its pipeline"
        )
    config = configs.with_resume_overrides(configs.load(directory.config), overrides)
    if record.state is RunState.DONE and not overrides:
        raise ConfigError("run", run_id, "a run that did not finish", "give it more steps: steps=N")
    return _carry_out(config, directory, _check_all(config), resumed=True, json_output=json_output)


def _check_all(config: RunConfig) -> dict[str, EpochPrompts]:
    """Every stage's prompts by the stage's name ("" for a run that trains itself); what can be wrong is wrong
    now.
    """
    if not config.stages:
        return {"": check(config)}
    return {stage.name: check(configs.compose_stage(stage)) for stage in config.stages}


def _carry_out(
    config: RunConfig,
    directory: RunDirectory,
    prompts: dict[str, EpochPrompts],
    *,
    resumed: bool,
    json_output: bool,
) -> int:
    console = Console(stderr=True)
    with _run_log(directory):
        code = asyncio.run(_run_job(config, directory, prompts, resumed, console))
    if json_output:
        print_json(status_document(directory))
    else:
        run_report.print_outcome(directory, config, Console(file=sys.stdout))
    return code


async def _run_job(
    config: RunConfig,
    directory: RunDirectory,
    prompts: dict[str, EpochPrompts],
    resumed: bool,
    console: Console,
) -> int:
    switch = StopSwitch()
    slots = max(len(placement_of(stage).slots) for stage in _training_configs(config))
    with _signals(switch):
        wired = _WiredJob(config, directory, prompts, resumed, console, switch)
        return await wired.carry_out(lambda: ray_session(config.cluster, slots))


def _training_configs(config: RunConfig) -> list[RunConfig]:
    return [configs.compose_stage(stage) for stage in config.stages] or [config]


class _WiredJob(Job):
    """One run: a job's file drives it, or a pipeline's does, as a stage."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        prompts: dict[str, EpochPrompts],
        resumed: bool,
        console: Console,
        switch: StopSwitch,
        pipeline: str = "",
        stage: str = "",
    ) -> None:
        self._config, self._directory, self._prompts = config, directory, prompts
        self._resumed, self._console, self._switch = resumed, console, switch
        self._pipeline, self._stage = pipeline, stage

    async def carry_out(
        self, surroundings: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    ) -> int:
        """Run the job's file and write down how it ended; the exit code."""
        directory, config = self._directory, self._config
        write_atomically(directory.config, config.to_yaml())
        record = directory.begin(
            job=config.job,
            purpose=config.purpose,
            steps=config.steps,
            at_ns=CLOCK.now_ns(),
            pipeline=self._pipeline,
            stage=self._stage,
            stages=[stage.name for stage in config.stages],
        )
        self._attempt = record.attempt
        self._write_manifest()
        with tracked(config, directory, self._pipeline, CLOCK) as self._tracker:
            code = await self._run_file(surroundings)
            for path in run_report.write(directory, config):
                self._tracker.log_artifact(path)
        return code

    async def _run_file(self, surroundings: Callable[[], contextlib.AbstractContextManager[None]]) -> int:
        """Run the job's file; its end is in state.json when this returns."""
        state, why, code = RunState.DONE, "", 0
        try:
            with surroundings():
                await find_job(self._config.job)(self)
        except OrchestratorError as error:
            state, why, code = _ended(error)
            logger.error("the run ended: %s", error)
        except (Exception, asyncio.CancelledError) as error:
            logger.exception("the run ended with an error that nobody foresaw")
            state, why, code = RunState.FAILED, f"{type(error).__name__}: {error}", 1
        self._directory.write_state(state, why, CLOCK.now_ns())
        return code

    async def train(self) -> TrainedModel:
        """Run the training loop with this run's own config."""
        attempt = Attempt(
            config=self._config,
            directory=self._directory,
            prompts=self._prompts[""],
            number=self._attempt,
            resumed=self._resumed,
            pipeline=self._pipeline,
            stage=self._stage,
        )
        await train(attempt, self._tracker, self._switch, self._console, CLOCK)
        return TrainedModel(self._directory.model.resolve(), self._directory.run_id)

    async def stage(self, name: str, start_from: TrainedModel | None = None) -> TrainedModel:
        """Carry out a stage as a run of its own, go on with it, or take what it made before.

        Raises how it ended.
        """
        directory, state = self._stage_directory(name)
        model = TrainedModel(directory.model.resolve(), directory.run_id)
        if state is RunState.DONE:
            return model
        config = _stage_config(self._config, name, start_from)
        self._directory.add_stage(name, directory.run_id)
        stage = _WiredJob(
            config,
            directory,
            {"": self._prompts[name]},
            state is not None,
            self._console,
            self._switch,
            pipeline=self._directory.run_id,
            stage=name,
        )
        await stage.carry_out()
        _raise_unless_done(name, directory)
        return model

    def _stage_directory(self, name: str) -> tuple[RunDirectory, RunState | None]:
        """The stage's run directory and how its run stands; None for a stage that was not begun."""
        for known in self._directory.record().stages:
            if known.name == name and known.run_id is not None:
                found = RunDirectory(self._config.output_dir / known.run_id)
                return found, found.record().state
        directory = RunDirectory(self._config.output_dir / f"{self._directory.run_id}-{name}")
        directory.create()
        return directory, None

    def _write_manifest(self) -> None:
        model = self._config.model.path
        manifest = build_manifest(
            run_id=self._directory.run_id,
            seed=self._config.seed,
            data_sha256={name or self._config.job: prompts.digest for name, prompts in self._prompts.items()},
            model=Path(model) if model else None,
        )
        write_atomically(self._directory.manifest, json.dumps(manifest, indent=2) + "\n")


def _stage_config(pipeline: RunConfig, name: str, start_from: TrainedModel | None) -> RunConfig:
    stage: StageConfig = next(stage for stage in pipeline.stages if stage.name == name)
    overrides = list(stage.overrides)
    if start_from is not None:
        overrides.append(f"model.path='{start_from.path}'")
    return configs.compose_stage(stage.model_copy(update={"overrides": tuple(overrides)}))


def _ended(error: OrchestratorError) -> tuple[RunState, str, int]:
    """How a run that was started ends by this error: a config that turns out wrong on the way is a failure,
    not exit 2.
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
        switch.ask(DrainedError(f"{name}: stopped after a checkpoint; orchestrator resume continues"))

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
