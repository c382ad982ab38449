"""Docstrings and comments are laid out by people: no line is torn off by a tool that rewrapped the text.

A formatter that wraps prose without reading it leaves two marks: a single short word on a line of its own
under a full line, and diagrams or tables with broken or joined lines. Both look like this: a line of more
than FULL characters, and directly below it, in the same paragraph, one of fewer than SHORT.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("orchestrator", "jobs", "benchmarks", "tests", "docs")
FULL, SHORT = 88, 15
NEW_PARAGRAPH = re.compile(r"[-*|>]|\d+\.|`{3}|\.\.\.")
"""A line that begins like this starts a list item, a table row, an example or a code block."""

WORD = re.compile(r"[a-z]{2}|\d", re.IGNORECASE)

Line = tuple[int, str]
"""(line number in the file, the line with its indentation)."""


def torn(lines: Iterable[Line]) -> Iterator[int]:
    """Numbers of the lines that look torn off the line above them."""
    for (_, above), (number, line) in pairwise(lines):
        text = line.strip()
        meant = NEW_PARAGRAPH.match(text) or above.lstrip().startswith(">>>") or not WORD.search(text)
        if len(above.rstrip()) > FULL and 0 < len(text) < SHORT and not meant:
            yield number


def docstrings(source: str) -> Iterator[list[Line]]:
    """The lines of every string that is a statement by itself, without its quotes."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.end_lineno:
            found = lines[node.lineno - 1 : node.end_lineno]
            yield [(node.lineno + i, line.replace('"""', "")) for i, line in enumerate(found)]


def comments(source: str) -> Iterator[list[Line]]:
    """Comments on neighbouring lines of their own, without the hash."""
    block: list[Line] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or token.line[: token.start[1]].strip():
            continue
        if block and token.start[0] != block[-1][0] + 1:
            yield block
            block = []
        block.append((token.start[0], token.line.replace("#", " ", 1).rstrip()))
    yield block


def torn_in(path: Path) -> list[int]:
    """The torn lines of a Python file."""
    source = path.read_text(encoding="utf-8")
    if max(map(len, source.splitlines()), default=0) <= FULL:
        return []
    return sorted(n for lines in (*docstrings(source), *comments(source)) for n in torn(lines))


LONG = "a line that is filled to the margin " + "x" * 60


@pytest.mark.parametrize(
    "source",
    [
        f'"""{LONG}\ntorn.\n"""\n',
        f'def f():\n    """{LONG}\n    torn."""\n',
        f'x = 1\n"""{LONG}\ntorn\n"""\n',
        f"# {LONG}\n# torn\n",
        f'"""The flow:\n\n    task --> {LONG} -->\n    learner\n"""\n',
    ],
    ids=["docstring", "closing quotes", "attribute", "comment", "diagram"],
)
def test_a_torn_line_is_found(source: str, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    assert len(torn_in(path)) == 1


@pytest.mark.parametrize(
    "source",
    [
        f'"""{LONG}\n"""\n',
        f'"""{LONG}\n\nshort\n"""\n',
        f'"""{LONG}\n- item\n"""\n',
        f'"""{LONG}\nand a last line of some words.\n"""\n',
        "# short\n# too\n",
        f'"""\n>>> {LONG}\n3\n"""\n',
        f'"""\n    {LONG} -->\n        ^\n"""\n',
        f"x = 1  # {LONG}\n# no paragraph\n",
    ],
    ids=[
        "one line",
        "next paragraph",
        "list",
        "full enough",
        "short comments",
        "example",
        "arrow",
        "trailing comment",
    ],
)
def test_an_intended_short_line_is_accepted(source: str, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    assert torn_in(path) == []


@pytest.mark.slow
@pytest.mark.parametrize("folder", FOLDERS)
def test_no_line_is_torn(folder: str) -> None:
    found = {
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for number in torn_in(path)
    }
    assert found == set()
