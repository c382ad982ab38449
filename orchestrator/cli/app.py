"""The commands and their options. What a command does is in the module that it imports when it is called."""

from __future__ import annotations

import sys
from itertools import takewhile
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

from orchestrator.cli.models import app as models_app
from orchestrator.cli.output import print_error
from orchestrator.cli.reward import app as reward_app
from orchestrator.errors import ConfigError, OrchestratorError

app = typer.Typer(
    name="orchestrator",
    help="Reinforcement-learning post-training on Ray, with every accelerator-second in a ledger.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Job = Annotated[str, typer.Argument(metavar="JOB", help="a job: sft, grpo, r1_demo, ...")]
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="a run id, its beginning, `latest`, or a run directory")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="OVERRIDE", help="key=value, group=option, +key=value or ~key"),
]
ResumeOverrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="OVERRIDE", help="key=value, for a key that may change when a run resumes"),
]
Json = Annotated[bool, typer.Option("--json", help="one JSON document on stdout")]
OutputDir = Annotated[
    Path, typer.Option("--output-dir", envvar="ORCHESTRATOR_OUTPUT_DIR", help="directory of the runs")
]
ConfigDir = Annotated[
    Path | None,
    typer.Option("--config-dir", exists=True, file_okay=False, help="a folder with your own config groups"),
]

RUNS = Path("runs")


@app.command()
def run(
    job: Job,
    overrides: Overrides = None,
    run_id: Annotated[
        str | None,
        typer.Option("--run-id", help="the id of the run (default: date, time, job and 4 hex digits)"),
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", help="a Ray cluster: auto, HOST:PORT or ray://HOST:PORT")
    ] = None,
    config_dir: ConfigDir = None,
    as_json: Json = False,
) -> int:
    """Run a job on a local Ray instance, or on the cluster at --address."""
    from orchestrator.cli import start

    return start.run(job, start.all_overrides(overrides, config_dir, address), run_id, as_json)


@app.command()
def resume(
    run: Run, overrides: ResumeOverrides = None, output_dir: OutputDir = RUNS, as_json: Json = False
) -> int:
    """Continue a run from its last checkpoint. Overrides may change its length, resources and monitoring, but
    nothing that changes the training itself.
    """
    from orchestrator.cli import start

    return start.resume(run, overrides or [], output_dir, as_json)


@app.command()
def config(
    job: Annotated[str, typer.Argument(metavar="JOB|schema", help="a job, or `schema` for the JSON Schema")],
    overrides: Overrides = None,
    stage: Annotated[
        str | None, typer.Option("--stage", help="the config of one stage of a pipeline")
    ] = None,
    config_dir: ConfigDir = None,
    as_json: Json = False,
) -> int:
    """Print the composed, validated config of a job, or the JSON Schema of all configs."""
    from orchestrator.cli import start

    if job == "schema":
        return start.print_schema(overrides or [])
    return start.print_config(job, start.all_overrides(overrides, config_dir, None), stage, as_json)


@app.command()
def plan(
    job: Job,
    overrides: Overrides = None,
    prompt_tokens: Annotated[
        float | None,
        typer.Option("--prompt-tokens", min=1, help="mean prompt length (default: the task's)"),
    ] = None,
    response_tokens: Annotated[
        float | None,
        typer.Option(
            "--response-tokens",
            min=1,
            help="mean response length (default: a range from 1/4 of the maximum to the maximum)",
        ),
    ] = None,
    accelerators: Annotated[
        Path | None, typer.Option("--accelerators", dir_okay=False, help="your own table of accelerators")
    ] = None,
    config_dir: ConfigDir = None,
    as_json: Json = False,
) -> int:
    """Estimate the memory, step time, accelerator-hours and cost of a job. Starts nothing."""
    from orchestrator.cli import plan as planning
    from orchestrator.cli import start

    assumed = planning.Assumptions(prompt_tokens, response_tokens, accelerators)
    return planning.plan(job, start.all_overrides(overrides, config_dir, None), assumed, as_json)


@app.command()
def runs(output_dir: OutputDir = RUNS, as_json: Json = False) -> int:
    """List runs, newest first, one line each."""
    from orchestrator.cli import read

    return read.list_runs(output_dir, as_json)


@app.command()
def status(run: Run, output_dir: OutputDir = RUNS, as_json: Json = False) -> int:
    """Show the state of a run, why it ended, and its metrics."""
    from orchestrator.cli import read

    return read.show_status(run, output_dir, as_json)


@app.command()
def watch(
    run: Run,
    output_dir: OutputDir = RUNS,
    every: Annotated[float, typer.Option("--every", min=0.1, help="seconds between two updates")] = 1.0,
    as_json: Json = False,
) -> int:
    """Follow a run until it ends, and exit with its exit code. Ctrl-C ends this command, not the run."""
    from orchestrator.cli import follow

    return follow.watch(run, output_dir, every, as_json)


@app.command()
def stop(run: Run, output_dir: OutputDir = RUNS, as_json: Json = False) -> int:
    """Ask a run on this machine to stop with a checkpoint (exit code 4). It can be resumed."""
    from orchestrator.cli import follow

    return follow.stop(run, output_dir, as_json)


@app.command()
def workers(
    run: Run,
    add: Annotated[int | None, typer.Option("--add", metavar="N", help="ask for N more")] = None,
    remove: Annotated[int | None, typer.Option("--remove", metavar="N", help="ask for N fewer")] = None,
    now: Annotated[
        bool,
        typer.Option(
            "--now", help="with --remove: other workers sample again what those that leave have begun"
        ),
    ] = False,
    output_dir: OutputDir = RUNS,
    as_json: Json = False,
) -> int:
    """Show the rollout workers of a run, or change their number while it trains."""
    from orchestrator.cli import workers as pool

    if add is None and remove is None and not now:
        return pool.show(run, output_dir, as_json)
    return pool.change(run, output_dir, add, remove, now, as_json)


@app.command()
def logs(
    run: Run,
    output_dir: OutputDir = RUNS,
    tail: Annotated[int, typer.Option("--tail", min=0, help="only the last lines of each log; 0: all")] = 0,
    as_json: Json = False,
) -> int:
    """Print the logs of a run's controller and workers, with what scorers printed, and its events."""
    from orchestrator.cli import read

    return read.show_logs(run, output_dir, tail, as_json)


@app.command()
def rollouts(
    run: Run,
    output_dir: OutputDir = RUNS,
    step: Annotated[int | None, typer.Option("--step", min=0, help="(default: the newest recorded)")] = None,
    worst: Annotated[
        int | None, typer.Option("--worst", min=1, help="only the K rollouts with the lowest reward")
    ] = None,
    heldout: Annotated[bool, typer.Option("--heldout", help="answers to held-out prompts")] = False,
    failed: Annotated[
        bool, typer.Option("--failed", help="those that could not be scored, with the scorer's traceback")
    ] = False,
    as_json: Json = False,
) -> int:
    """Read what the model wrote."""
    from orchestrator.cli import read

    if failed:
        return read.show_failed_rollouts(run, output_dir, step, as_json)
    return read.show_rollouts(run, output_dir, step, worst, heldout, as_json)


@app.command()
def audit(run: Run, output_dir: OutputDir = RUNS, as_json: Json = False) -> int:
    """Prove from a run's files that no group was lost, trained on twice or trained on too stale."""
    from orchestrator.cli import audit as auditing

    return auditing.show_audit(run, output_dir, as_json)


@app.command()
def timeline(
    run: Run,
    output_dir: OutputDir = RUNS,
    step: Annotated[int | None, typer.Option("--step", min=1, help="(default: the newest finished)")] = None,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", dir_okay=False, help="write all spans as a Chrome/Perfetto trace"),
    ] = None,
    as_json: Json = False,
) -> int:
    """Show what a step of a run spent its time on, and what the learner waited for."""
    from orchestrator.cli import timeline as timelines

    return timelines.show(run, output_dir, step, trace, as_json)


@app.command()
def doctor(output_dir: OutputDir = RUNS, as_json: Json = False) -> int:
    """Check whether this machine has everything that runs need, and how to fix what is missing."""
    from orchestrator.cli import doctor as checks

    return checks.report(output_dir, as_json)


app.add_typer(models_app, name="models")
app.add_typer(reward_app, name="reward")


class _PassThroughCommand(TyperCommand):
    """A command that passes all arguments after its name, including `--` and `--help`, to another parser."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        ctx.args = args
        return args


@app.command(cls=_PassThroughCommand, add_help_option=False)
def cost(ctx: typer.Context) -> int:
    """Report accelerator-hours and costs: report, headline, ..."""
    from orchestrator.cli.cost.app import app as ledger_app

    outcome = ledger_app(args=ctx.args, prog_name="orchestrator cost", standalone_mode=False)
    return outcome if isinstance(outcome, int) else 0


class _UsageError(ConfigError):
    """A command line that can't be parsed; the parser's own sentence is the hint."""

    def __str__(self) -> str:
        return f"{self.hint} ({self.allowed})"


def run_command_line(arguments: list[str]) -> int:
    """Run `orchestrator <arguments>` and return the exit code. Errors are printed, as JSON with `--json`."""
    as_json = "--json" in takewhile(lambda word: word != "--", arguments)
    try:
        outcome = app(args=arguments or ["--help"], prog_name="orchestrator", standalone_mode=False)
    except OrchestratorError as error:
        print_error(error, as_json)
        return error.exit_code
    except typer.TyperException as error:
        command = " ".join(["orchestrator", *arguments])
        usage = _UsageError("command line", command, "see orchestrator --help", error.format_message())
        print_error(usage, as_json)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return 1
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print_error(OrchestratorError(f"{error.filename}: {error.strerror or error}."), as_json)
        return 1
    return outcome if isinstance(outcome, int) else 0
