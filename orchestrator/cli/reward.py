"""`orchestrator reward ...`: tries out a reward without starting a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.output import print_json, print_table
from orchestrator.cli.terminal import say
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.training.rewards.trial import Trial

JOB = "grpo"
"""The job whose defaults the overrides change."""

app = typer.Typer(help="Try out rewards without a run.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def reward() -> None:
    """Try out rewards without a run."""


@app.command("try")
def try_(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="OVERRIDE", help="as for `run grpo`: reward=accuracy, key=value, +key=value"),
    ] = None,
    answers: Annotated[
        list[str] | None,
        typer.Option("--answer", help="a response as a model would write it; may be given several times"),
    ] = None,
    reference: Annotated[
        str, typer.Option("--reference", help='JSON: the correct answer, or {"answer": ..., ...}')
    ] = "{}",
    row: Annotated[
        str, typer.Option("--row", help="JSON object: the other columns of the prompt's row")
    ] = "{}",
    prompt: Annotated[str, typer.Option("--prompt", help="the prompt's text")] = "",
    prefill: Annotated[
        str, typer.Option("--prefill", help="what the chat template has already written: <think>")
    ] = "",
    config_dir: Annotated[
        Path | None,
        typer.Option(
            "--config-dir", exists=True, file_okay=False, help="a folder with your own config groups"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> int:
    """Show the reward of some answers. Scorers run exactly as in a run, but without Ray."""
    from orchestrator.cli import start
    from orchestrator.config import compose
    from orchestrator.training.records import Prompt
    from orchestrator.training.rewards.trial import try_reward

    if not answers:
        raise ConfigError("--answer", "nothing", "a text; may be given several times")
    config = compose.compose(JOB, start.all_overrides(overrides, config_dir, None))
    known = _parsed("--reference", reference)
    question = Prompt(
        "try/0",
        prompt,
        known if isinstance(known, dict) else {"answer": known},
        columns=_object("--row", row),
    )
    trials = try_reward(config.reward, config.rollout.max_new_tokens, question, answers, prefill)
    if as_json:
        print_json([_document(trial) for trial in trials])
    else:
        _print(trials)
    return 0


def _document(trial: Trial) -> dict[str, Any]:
    return {
        "answer": trial.response,
        "found": trial.found,
        "reward": trial.reward,
        "components": dict(trial.components),
        "grade": trial.status.name.lower(),
        "reason": trial.reason,
        "traceback": trial.traceback,
    }


def _print(trials: Sequence[Trial]) -> None:
    names = list(dict.fromkeys(name for trial in trials for name in trial.components))
    columns = ["found", "reward", *names, "grade", "reason", "answer"]
    rows = [
        [
            "(no answer)" if trial.found is None else trial.found,
            f"{trial.reward:g}",
            *(f"{trial.components[name]:g}" if name in trial.components else "" for name in names),
            trial.status.name.lower(),
            trial.reason,
            trial.response,
        ]
        for trial in trials
    ]
    print_table(columns, rows, "no answers")
    for traceback in dict.fromkeys(trial.traceback for trial in trials if trial.traceback):
        say(traceback)


def _parsed(option: str, text: str) -> Any:  # noqa: ANN401 - any JSON
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        hint = f"{error}; a string needs JSON quotes inside the shell's quotes: '\"Paris\"'"
        raise ConfigError(option, text, "JSON", hint) from error


def _object(option: str, text: str) -> dict[str, Any]:
    value = _parsed(option, text)
    if not isinstance(value, dict):
        raise ConfigError(option, text, "a JSON object")
    return value
