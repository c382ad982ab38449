"""`orchestrator models ...`: trained models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Models trained by runs.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def models() -> None:
    """Models trained by runs."""


@app.command("export")
def export(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="a run id, its beginning, `latest`, or a run directory")
    ],
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="the folder to write (new or empty)", file_okay=False),
    ],
    step: Annotated[
        int | None, typer.Option("--step", min=0, help="the checkpoint (default: the newest)")
    ] = None,
    output_dir: Annotated[
        Path, typer.Option("--output-dir", envvar="ORCHESTRATOR_OUTPUT_DIR", help="directory of the runs")
    ] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> int:
    """Write a checkpoint as a Hugging Face folder with tokenizer, model card, licence and provenance."""
    from orchestrator.cli import model_export

    return model_export.export(run, directory, step, output_dir, as_json)
