"""`orchestrator cost ...`: the ledger on the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.ledger.ledger import Ledger
    from orchestrator.ledger.run_report import RunReport

app = typer.Typer(help="Accelerator-hours and money.", no_args_is_help=True)

LedgerUrl = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        envvar="ORCHESTRATOR_LEDGER_URL",
        help="sqlite:///PATH or postgresql://... (default: ledger.db under the output directory)",
    ),
]
OutputDir = Annotated[
    Path, typer.Option("--output-dir", envvar="ORCHESTRATOR_OUTPUT_DIR", help="where runs live")
]
PriceBookOption = Annotated[
    str | None,
    typer.Option(
        "--price-book",
        help="a yaml file, or a name under conf/price_book (default: the run's own, else laptop)",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="one JSON document on stdout")]

DEFAULT_OUTPUT_DIR = Path("runs")


@contextmanager
def refusing() -> Generator[None]:
    """Turn what the ledger refuses into the project's own error: exit code 2, or JSON."""
    from orchestrator.ledger.errors import LedgerError

    try:
        yield
    except LedgerError as error:
        raise ConfigError(error.key, error.value, error.allowed, error.hint) from error


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="a run id or a pipeline id")],
    ledger: LedgerUrl = None,
    output_dir: OutputDir = DEFAULT_OUTPUT_DIR,
    price_book: PriceBookOption = None,
    as_json: Json = False,
) -> None:
    """What a run or a pipeline used and cost, by role and activity."""
    with refusing():
        book = open_ledger(ledger, output_dir, price_book, run)
        ship_spools(book, output_dir)
        result = book.report(run)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        _print_run_report(result)


@app.command("ship")
def ship_command(
    directory: Annotated[Path, typer.Argument(help="a folder of *.jsonl usage events")],
    ledger: LedgerUrl = None,
    output_dir: OutputDir = DEFAULT_OUTPUT_DIR,
    as_json: Json = False,
) -> None:
    """Take the usage events of a folder into the ledger; what it already has is passed over."""
    with refusing():
        new = open_ledger(ledger, output_dir, None).ship(directory)
    typer.echo(json.dumps({"new_events": new}) if as_json else f"{new} new events")


@app.command()
def quarantine(
    run: Annotated[str | None, typer.Argument(help="a run id or a pipeline id")] = None,
    ledger: LedgerUrl = None,
    output_dir: OutputDir = DEFAULT_OUTPUT_DIR,
    as_json: Json = False,
) -> None:
    """What does not count, and why: lines that are no event; a run's events that contradict others."""
    with refusing():
        book = open_ledger(ledger, output_dir, None)
        ship_spools(book, output_dir)
        rows = [{"row": line.source, "reason": line.reason} for line in book.bad_lines()]
        if run is not None:
            rows += [
                {"row": f"event {found.event_id}", "reason": found.reason} for found in book.rejections(run)
            ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        typer.echo(f"{row['row']}: {row['reason']}")


def open_ledger(url: str | None, output_dir: Path, price_book: str | None, run: str = "") -> Ledger:
    """The ledger that a command was pointed to. Raises LedgerError."""
    from orchestrator.ledger.ledger import Ledger

    return Ledger.open(
        url or f"sqlite:///{output_dir / 'ledger.db'}", find_price_book(price_book, output_dir, run)
    )


def find_price_book(name: str | None, output_dir: Path, run: str) -> Path | dict[str, object]:
    """A price book by path, by name, or from the config of a run; `laptop` if nothing says otherwise."""
    from orchestrator.ledger.errors import PriceBookError

    resolved = output_dir / run / "config.yaml"
    if name is None and run and resolved.is_file():
        import yaml

        config = yaml.safe_load(resolved.read_text(encoding="utf-8"))
        if isinstance(config, dict) and isinstance(config.get("price_book"), dict):
            return config["price_book"]
    name = name or "laptop"
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        return Path(name)
    package = Path(__file__).resolve().parents[1]
    folders = [folder / "price_book" for folder in (package / "conf", package.parent / "conf")]
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    names = sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")})
    raise PriceBookError("price_book", name, ", ".join(names), "or the path of a yaml file")


def ship_spools(ledger: Ledger, output_dir: Path) -> None:
    """Take what runs under `output_dir` have spooled and not shipped, a crashed run included."""
    for directory in sorted(output_dir.glob("*/ledger")):
        if directory.is_dir():
            ledger.ship(directory)


def _print_run_report(result: RunReport) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("role", "activity", "resource", title=f"{result.run_id}")
    table.add_column("accelerator-hours", justify="right")
    table.add_column(result.currency, justify="right")
    for row in result.rows:
        amount = "no price" if row.amount is None else f"{row.amount:f}"
        table.add_row(row.role, row.activity, row.resource, f"{row.accelerator_hours:f}", amount)
    table.add_section()
    table.add_row("total", "", "", f"{result.accelerator_hours:f}", f"{result.amount:f}")
    Console().print(table)
    for reason in result.unpriced:
        typer.echo(f"no price: {reason}", err=True)
