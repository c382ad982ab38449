"""Shared by the `cost` commands: common options, and access to the ledger, runs and price books."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, TypeVar, get_type_hints

import typer

from orchestrator.cli.terminal import say
from orchestrator.errors import ConfigError, RunNotFoundError
from orchestrator.masking import mask

if TYPE_CHECKING:
    from orchestrator.ledger.ledger import Ledger
    from orchestrator.ledger.prices import PriceBook

RUNS = Path("runs")

FirstDay = Annotated[
    str | None, typer.Option("--from", metavar="DAY|MONTH", help="the first day (inclusive)")
]
LastDay = Annotated[str | None, typer.Option("--to", metavar="DAY|MONTH", help="the last day (inclusive)")]
Places = Annotated[int, typer.Option("--places", min=0, max=12, help="decimals of amounts")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="a run or a pipeline")]

_COMMON: dict[str, tuple[Any, Any]] = {
    "ledger": (
        Annotated[
            str | None,
            typer.Option(
                "--ledger",
                help="sqlite:///PATH or postgresql://... (default: ledger.url in the newest run's config,"
                " else ORCHESTRATOR_LEDGER_URL, else ledger.db in the output directory)",
            ),
        ],
        None,
    ),
    "output_dir": (
        Annotated[
            Path,
            typer.Option("--output-dir", envvar="ORCHESTRATOR_OUTPUT_DIR", help="directory of the runs"),
        ],
        RUNS,
    ),
    "price_book": (
        Annotated[
            str | None,
            typer.Option(
                "--price-book",
                metavar="NAME|FILE",
                help="use the prices of this book instead of the adopted ones",
            ),
        ],
        None,
    ),
    "as_of": (
        Annotated[
            str | None,
            typer.Option(
                "--as-of",
                metavar="DATE|TIME",
                help="as known at the end of that day (today: now), or at that time (UTC)",
            ),
        ],
        None,
    ),
    "as_json": (Annotated[bool, typer.Option("--json", help="one JSON document on stdout")], False),
}
"""Annotation and default of each common option, by parameter name."""

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Books:
    """The common options of a command, and the ledger that they select."""

    url: str | None
    output_dir: Path
    price_book: str | None
    as_of: str | None
    as_json: bool

    @cached_property
    def as_of_ns(self) -> int | None:
        """Nanoseconds of `--as-of`. Raises ConfigError."""
        return parse_time("--as-of", self.as_of)

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger, opened at first use. Raises LedgerError."""
        return self.open()

    def open(self) -> Ledger:
        """Open the ledger and ship the spools of the output directory. Raises LedgerError."""
        return open_ledger(self.url, self.output_dir, self.price_book, self.as_of_ns)

    def run_id(self, name: str) -> str:
        """The run or pipeline that `name` means; see `resolve_run`."""
        return resolve_run(self.ledger, self.output_dir, name)


def with_books(
    prices: bool = False, as_of: bool = False, json: bool = True
) -> Callable[[Callable[Concatenate[Books, P], R]], Callable[P, R]]:
    """Add the common options to a command and pass them to it as `Books` in its first argument.

    Every command gets --ledger and --output-dir; the arguments add --price-book, --as-of and --json. Errors
    of the ledger become errors of this project.
    """
    wanted = {"price_book": prices, "as_of": as_of, "as_json": json}
    names = [name for name in _COMMON if wanted.get(name, True)]

    def decorate(command: Callable[Concatenate[Books, P], R]) -> Callable[P, R]:
        @functools.wraps(command)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            given = {name: kwargs.pop(name, default) for name, (_, default) in _COMMON.items()}
            with translated_errors():
                return command(Books(*given.values()), *args, **kwargs)  # type: ignore[arg-type]

        _set_parameters(run, command, names)
        return run

    return decorate


def _set_parameters(run: Callable[..., Any], command: Callable[..., Any], names: list[str]) -> None:
    """Show typer the parameters of `command` except the first one, followed by the common options."""
    hints = get_type_hints(command, include_extras=True)
    (first, *own) = inspect.signature(command).parameters.values()
    del hints[first.name]
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
        for parameter in own
    ]
    for name in names:
        annotation, default = _COMMON[name]
        hints[name] = annotation
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    run.__annotations__ = hints
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]


@contextmanager
def translated_errors() -> Generator[None]:
    """Translate errors of the ledger into errors of this project, which end with exit code 2."""
    from orchestrator.ledger.errors import LedgerError

    try:
        yield
    except LedgerError as error:
        raise _LedgerError(error.key, error.value, error.allowed, error.hint, str(error)) from error


class _LedgerError(ConfigError):
    """An error of the ledger that keeps its own message."""

    def __init__(self, key: str, value: str, allowed: str, hint: str, message: str) -> None:
        super().__init__(key, value, allowed, hint)
        self.args = (key, value, allowed, hint, message)
        self.message = mask(message)

    def __str__(self) -> str:
        return self.message


def open_ledger(
    url: str | None, output_dir: Path, price_book: str | None = None, as_of_ns: int | None = None
) -> Ledger:
    """Open a ledger and ship the spools of `output_dir`.

    If no price book was adopted by `as_of_ns`, the book `laptop` is used. A ledger that cannot be written
    (a full disk, a read-only mount) is opened for reading, and stderr says what its reports lack. Raises
    LedgerError, also for a time on a later day than today.
    """
    from orchestrator.ledger.errors import LedgerReadOnlyError, LedgerUnavailableError
    from orchestrator.ledger.ledger import Ledger

    where = url or default_ledger(output_dir)
    try:
        ledger = Ledger.open(where)
    except LedgerReadOnlyError as error:
        ledger = _open_read_only(where, error)
    known_at = None if as_of_ns is None else ledger.moment(as_of_ns)
    if price_book is not None or not ledger.prices.books(known_at):
        ledger = ledger.priced_with(load_price_book(price_book or "laptop"))
    try:
        for spool in sorted(output_dir.glob("*/ledger")):
            ledger.ship(spool)
    except LedgerUnavailableError as error:
        say(f"warning: reports lack the usage that is only in spool files: {error}", err=True)
    return ledger


def _open_read_only(url: str, error: Exception) -> Ledger:
    """The ledger, for reading only. Raises the original error if it cannot even be read."""
    from orchestrator.ledger.errors import LedgerUnavailableError
    from orchestrator.ledger.ledger import Ledger

    try:
        return Ledger.open(url, read_only=True)
    except LedgerUnavailableError:
        raise error from None


def default_ledger(output_dir: Path) -> str:
    """The URL of the ledger without --ledger: the one in the config of the newest run under `output_dir`,
    else the one in the environment, else a file in `output_dir`.

    Configs do not store passwords, so the URL of the environment provides them. Raises ConfigError if it
    is needed but not set.
    """
    from orchestrator.masking import masked_keys

    known, configured = os.environ.get("ORCHESTRATOR_LEDGER_URL"), _configured_ledger(output_dir)
    if configured is not None and any(masked_keys(configured)):
        if known is None:
            hint = "config.yaml does not store passwords: set --ledger URL or ORCHESTRATOR_LEDGER_URL"
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


def load_price_book(name: str) -> PriceBook:
    """A price book by path, or by its name under `conf/price_book`. Raises PriceBookError."""
    from orchestrator.config.location import conf_dir
    from orchestrator.ledger.errors import PriceBookError
    from orchestrator.ledger.prices import PriceBook

    if name.endswith((".yaml", ".yml")) or os.sep in name:
        return PriceBook.load(Path(name))
    found = {path.stem: path for path in (conf_dir() / "price_book").glob("*.yaml")}
    if name not in found:
        raise PriceBookError("price_book", name, ", ".join(sorted(found)), "or the path of a YAML file")
    return PriceBook.load(found[name])


def resolve_run(ledger: Ledger, output_dir: Path, name: str) -> str:
    """Resolve `name` to a run or pipeline of the ledger, or to a run in the output directory, where it may be
    `latest` or the beginning of an id.
    """
    from orchestrator.runs.status import find_run

    if ledger.knows(name):
        return name
    try:
        return find_run(output_dir, name).run_id
    except RunNotFoundError:
        return name


def require_writable(option: str, path: Path) -> None:
    """Create the directory of a file that will be written later. Raises ConfigError if the file obviously
    cannot be written.
    """
    with writing(option, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a directory")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError(f"no permission to write {path}")


@contextmanager
def writing(option: str, path: Path) -> Generator[None]:
    """Translate errors of the file system into errors of this project, which end with exit code 2."""
    try:
        yield
    except OSError as error:
        raise ConfigError(option, str(path), "a writable file", str(error)) from error


def parse_time(option: str, text: str | None) -> int | None:
    """Nanoseconds of a date or time. Raises ConfigError."""
    from orchestrator.ledger.calendar import parse_moment

    if text is None:
        return None
    try:
        return parse_moment(text)
    except ValueError as error:
        raise ConfigError(option, text, "YYYY-MM-DD or YYYY-MM-DDTHH:MM:SS, UTC") from error


def days(first: str | None, last: str | None) -> tuple[int | None, int | None]:
    """The day range [start, end) of `--from` and `--to`, which are both inclusive. Raises ConfigError."""
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


def dimensions(text: str) -> list[str]:
    """The dimensions of `--by`, which commas separate."""
    return [part.strip() for part in text.split(",")]
