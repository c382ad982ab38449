"""Untrusted text on a terminal: neither markup nor control characters are interpreted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import orchestrator
from orchestrator.cli import terminal

HOSTILE = (
    "\x1b]0;pwn\x1b\\ \x1b[31m red \x9b31m \u202e gpj.exe [/x] [red]no[/red] [link=http://x]y[/link]"
    " \x07\x08\r\x00\x7f :skull: \ud800"
)


def _has_no_controls(text: str) -> bool:
    return all(character in "\n\t" or terminal.printable(character) == character for character in text)


@pytest.mark.slow
@given(st.text(st.characters()))
def test_printable_text_has_no_control_characters(text: str) -> None:
    shown = terminal.printable(text)
    assert _has_no_controls(shown)
    shown.encode("utf-8")  # no lone surrogate is left


@given(st.text(st.characters()))
def test_ordinary_text_is_not_changed(text: str) -> None:
    ordinary = "".join(character for character in text if terminal.printable(character) == character)
    assert terminal.printable(ordinary) == ordinary


@given(st.text(st.characters()))
def test_escaped_json_is_the_same_document_without_control_characters(text: str) -> None:
    written = terminal.json_text(json.dumps({"text": text}, ensure_ascii=False))
    assert json.loads(written) == {"text": text}
    assert _has_no_controls(written)


def _table(cell: str) -> Table:
    table = Table("column")
    table.add_row(cell)
    return table


@pytest.mark.parametrize(
    "renderable",
    [HOSTILE, Text(HOSTILE), Panel(HOSTILE), _table(HOSTILE), Panel("x", title=Text(HOSTILE))],
    ids=["str", "Text", "Panel", "Table", "title"],
)
def test_no_kind_of_output_interprets_markup_or_escapes(
    renderable: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    terminal.show(renderable)  # pyright: ignore[reportArgumentType]
    out = capsys.readouterr().out
    assert _has_no_controls(out)
    assert "[red]no[/red]" in out
    assert "[link=http://x]y[/link]" in out
    assert ":skull:" in out


def test_plain_text_goes_to_the_requested_stream(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say(HOSTILE)
    terminal.say("error \x1b[31m", err=True)
    out, err = capsys.readouterr()
    assert _has_no_controls(out) and "[/x]" in out
    assert err == "error \\x1b[31m\n"


WAYS_TO_PRINT = re.compile(
    r"(?<![\w.])print\(|typer\.echo|click\.echo|\bConsole\(|sys\.(stdout|stderr)\.write|rich\.print"
)
PACKAGE = Path(orchestrator.__file__).parent
MAY_PRINT = {"cli/terminal.py", "cli/stop_signals.py", "training/cluster/environments.py"}
"""The second one prints one constant sentence before anything else is imported. The third holds the source
of a program whose output it parses.
"""


def test_no_other_module_prints() -> None:
    """All other output goes through `orchestrator.cli.terminal`."""
    found = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if str(path.relative_to(PACKAGE)) not in MAY_PRINT
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if WAYS_TO_PRINT.search(line) and ">>>" not in line
    ]
    assert [line for line in found if not line.startswith("launch/__init__.py")] == []
