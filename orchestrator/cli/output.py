"""Output of the commands: tables for people, JSON documents for scripts, and errors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.cli import terminal
from orchestrator.errors import ConfigError, OrchestratorError, without_colours

NUMBER = re.compile(r"[-+\d.,:%() ]*( to [-+\d.,:%() ]*)?|no price", re.ASCII)
"""Matches the cells of a numeric column: a number, a share, a range, a date, or nothing."""
NARROW_TEXT = 8
"""Text columns are never made narrower than this many characters."""


def print_json(document: object) -> None:
    """Print one JSON document on stdout. NaN and infinities become null."""
    terminal.say_json(json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False))


def print_error(error: OrchestratorError, as_json: bool) -> None:
    """Print an error as a sentence on stderr, or as `{error, key, value, allowed, hint}` on stdout."""
    text = without_colours(str(error))
    if not as_json:
        terminal.say(f"orchestrator: {text}", err=True)
        return
    fields = {"key": "", "value": "", "allowed": "", "hint": ""}
    if isinstance(error, ConfigError):
        fields = {"key": error.key, "value": error.value, "allowed": error.allowed, "hint": error.hint}
    print_json({"error": text, **fields})


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    empty: str,
    totals: Sequence[Sequence[str]] = (),
) -> None:
    """Print a plain table, with `totals` below a separator, or the sentence `empty` if there are no rows.

    Numeric columns are right-aligned and never wrapped or cut, because half a number is a wrong number. Text
    is wrapped. If the table is still too wide for the terminal, its lines exceed the width of the terminal.
    """
    from rich import box
    from rich.table import Table

    rows = [[terminal.printable(cell) for cell in row] for row in rows]
    totals = [[terminal.printable(cell) for cell in row] for row in totals]
    shown = [*rows, *totals]
    if not shown:
        terminal.say(empty)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    narrowest = 0
    for place, label in enumerate(columns):
        longest = max(len(label), *(len(row[place]) for row in shown))
        if all(NUMBER.fullmatch(row[place]) for row in shown):
            table.add_column(label, justify="right", no_wrap=True)
            narrowest += longest + 2
        else:
            table.add_column(label, overflow="fold")
            narrowest += min(longest, NARROW_TEXT) + 2
    for row in rows:
        table.add_row(*row)
    table.add_section()
    for row in totals:
        table.add_row(*row)
    console = terminal.console()
    console.width = max(console.width, narrowest)
    console.print(table, soft_wrap=False, crop=False)


def _finite(value: object) -> Any:  # noqa: ANN401
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
