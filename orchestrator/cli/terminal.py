"""The only module that writes to a terminal. All other code prints through it.

Text from a model, a label, a file or an exception may contain rich markup (`[red]`) and terminal escape
sequences (which change the title, write to the clipboard, or hide or reorder text). None of that is
interpreted: markup is printed literally, and control characters are printed as escapes such as `\\x1b`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.text import Text

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 (without tab and newline), DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that reorder text
    "\u2028\u2029"  # line and paragraph separators
    "\ud800-\udfff]"  # lone surrogates, which no encoding can write
)


def printable(text: str) -> str:
    r"""`text` with control characters, bidirectional marks and lone surrogates as visible escapes.

    Tabs and newlines stay.

    >>> print(printable("a\x1b[31mb\u202ec"))
    a\x1b[31mb\u202ec
    """
    return _CONTROL.sub(_escape, text.replace("\r\n", "\n"))


def json_text(text: str) -> str:
    r"""Write the characters that `printable` replaces as JSON escapes. The document stays equal."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print plain text to stdout, or to stderr with `err`."""
    stream = sys.stderr if err else sys.stdout
    print(printable(text), file=stream, end="\n" if nl else "")


def say_json(text: str) -> None:
    """Print one JSON document to stdout."""
    say(json_text(text))


def say_data(text: str) -> None:
    """Write data such as CSV to stdout unchanged, because a pipe must receive the same bytes as a file.
    Unsafe cells must already have been escaped.
    """
    sys.stdout.write(text)


def show(renderable: RenderableType, *, err: bool = False) -> None:
    """Print a table, a panel or styled text. Strings in it are printed literally, without markup."""
    console(err=err).print(renderable)


def console(*, err: bool = False, width: int | None = None) -> Console:
    """A rich console that interprets neither markup nor control characters in what it prints."""
    from rich.console import Console
    from rich.segment import Segment

    class SafeConsole(Console):
        """Escapes strings before layout, and all other text just before it is written."""

        def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]  # noqa: ANN401
            return super().render_str(printable(text), **options)

        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                if segment.control:
                    yield segment
                else:
                    yield Segment(printable(segment.text), segment.style)

    return SafeConsole(stderr=err, width=width, markup=False, emoji=False, highlight=False)


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
