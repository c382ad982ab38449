"""What the `cost` commands share: their options, and how they find the ledger, a run and a price book."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.errors import ConfigError, RunNotFoundError, StateError

if TYPE_CHECKING:
    from orchestrator.ledger.ledger import Ledger

LedgerUrl = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        help="sqlite:///PATH or postgresql://... (default: ledger.url of the newest run's config, else"
        " ORCHESTRATOR_LEDGER_URL, else ledger.db under the output directory)",
    ),
]
OutputDir = Annotated[
    Path, typer.Option("--output-dir", envvar="ORCHESTRATOR_OUTPUT_DIR", help="where runs live")
]
PriceBookName = Annotated[
    str | None,
    typer.Option(
        "--price-book",
        metavar="NAME|FILE",
        help="price with this book instead of those that the ledger adopted",
    ),
]
AsOf = Annotated[
    str | None,
    typer.Option(
        "--as-of",
        metavar="DATE|TIME",
        help="as known at the end of that day (today: now), or at that moment (UTC)",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="one JSON document on stdout")]

RUNS = Path("runs")


@contextmanager
def refusing() -> Generator[None]:
    """Translate errors of the ledger into errors of this project, which end with exit code 2."""
    from orchestrator.ledger.errors import LedgerError

    try:
        yield
    except LedgerError as error:
        if not error.allowed:
            raise StateError(str(error)) from error
        raise ConfigError(error.key, error.value, error.allowed, error.hint) from error


def open_ledger(
    url: str | None, output_dir: Path, price_book: str | None = None, as_of_ns: int | None = None
) -> Ledger:
    """The ledger that a command was pointed to, with the spools of `output_dir` shipped.

    A ledger that was never given a price book, by `as_of_ns`, is read with the book `laptop`. Raises
    LedgerError, also for a moment on a later day than today.
    """
    from orchestrator.ledger.ledger import Ledger

    ledger = Ledger.open(url or default_ledger(output_dir))
    known_at = None if as_of_ns is None else ledger.moment(as_of_ns)
    if price_book is not None or not ledger.price_books(known_at):
        ledger = ledger.priced_with(load_price_book(price_book or "laptop"))
    for spool in sorted(output_dir.glob("*/ledger")):
        ledger.ship(spool)
    return ledger


def default_ledger(output_dir: Path) -> str:
    """The ledger of the config that the newest run under `output_dir` was started with, where that names one;
    else the environment's; else a file under `output_dir`. A password, which no config keeps, comes with the
    environment's URL. Raises ConfigError if it does not.
    """
    from orchestrator.masking import masked_keys

    known, configured = os.environ.get("ORCHESTRATOR_LEDGER_URL"), _configured_ledger(output_dir)
    if configured is not None and any(masked_keys(configured)):
        if known is None:
            hint = "config.yaml does not keep passwords: give --ledger URL or set ORCHESTRATOR_LEDGER_URL"
            raise ConfigError("ledger.url", configured, "a URL with its password", hint)
        return known
    return configured or known or f"sqlite:///{(output_dir / 'ledger.db').resolve()}"


def _configured_ledger(output_dir: Path) -> str | None:
    import yaml

    written = sorted(output_dir.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in written[:1]:
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
            return values["ledger"]["url"]
        except (OSError, yaml.YAMLError, KeyError, TypeError):
            return None
    return None


def load_price_book(name: str) -> Any:  # noqa: ANN401 - the ledger is imported only when a command runs
    """A price book by path, or by its name under `conf/price_book`. Raises PriceBookError."""
    from orchestrator.ledger.errors import PriceBookError
    from orchestrator.ledger.prices import PriceBook

    if name.endswith((".yaml", ".yml")) or os.sep in name:
        return PriceBook.load(Path(name))
    package = Path(__file__).resolve().parents[2]
    found = {
        path.stem: path
        for folder in (package.parent / "conf", package / "conf")
        for path in (folder / "price_book").glob("*.yaml")
    }
    if name not in found:
        raise PriceBookError("price_book", name, ", ".join(sorted(found)), "or the path of a yaml file")
    return PriceBook.load(found[name])


def resolve_run(ledger: Ledger, output_dir: Path, name: str) -> str:
    """A run or pipeline of the ledger, or what the name means in the output directory (`latest`, a
    beginning).
    """
    from orchestrator.runs.status import find_run

    if ledger.knows(name):
        return name
    try:
        return find_run(output_dir, name).run_id
    except RunNotFoundError:
        return name


def require_writable(option: str, path: Path) -> None:
    """Make the folder of a file that is to be written after some work. Raises ConfigError where one can see
    now that it can't be.
    """
    with writing(option, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError(f"no permission to write {path}")


@contextmanager
def writing(option: str, path: Path) -> Generator[None]:
    """Turn what the disk refuses into the project's own error, so that it ends with exit code 2."""
    try:
        yield
    except OSError as error:
        raise ConfigError(option, str(path), "a file that can be written", str(error)) from error


def moment(as_of: str | None) -> int | None:
    """Nanoseconds of `--as-of`. Raises ConfigError."""
    from orchestrator.ledger.calendar import parse_moment

    if as_of is None:
        return None
    try:
        return parse_moment(as_of)
    except ValueError as error:
        raise ConfigError("--as-of", as_of, "YYYY-MM-DD or YYYY-MM-DDTHH:MM:SS, UTC") from error


def days(first: str | None, last: str | None) -> tuple[int | None, int | None]:
    """The days of `--from` and `--to`, both included. Raises ConfigError."""
    from orchestrator.ledger.calendar import parse_period

    bounds: list[int | None] = []
    for option, text, side in (("--from", first, 0), ("--to", last, 1)):
        try:
            bounds.append(None if text is None else parse_period(text)[side])
        except ValueError as error:
            raise ConfigError(option, str(text), "YYYY-MM-DD or YYYY-MM") from error
    start, end = bounds
    if start is not None and end is not None and end <= start:
        raise ConfigError("--to", str(last), f"{first} or later")
    return start, end
