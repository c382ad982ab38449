"""Labels as text in files that people open: no cell becomes a formula, no control character breaks a file.

Run ids, teams and other labels are typed by users and imported from other systems, so an export must not
trust them. Numbers are written as numbers and never pass through here.
"""

from __future__ import annotations

import re

_CONTROL = {code: chr(0x2400 + code) for code in range(0x20)}
_CONTROL[0x7F] = "\u2421"
_CONTROL.update(dict.fromkeys((*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF), "\ufffd"))

_FORMULA = re.compile(r"(^|;)(\s*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])")


def printable(text: str) -> str:
    """`text` with each control character replaced by its visible picture, or by U+FFFD if it has none.

    XML, and therefore XLSX, cannot hold control characters at all.

    >>> printable("a\\x1b[31m\\tb")
    'a␛[31m␉b'
    """
    return text.translate(_CONTROL)


def csv_text(text: str) -> str:
    """`text` for a CSV cell that no spreadsheet treats as a formula.

    A quote precedes every `=`, `+`, `-` or `@` (ASCII or full width) that a cell begins with, as OWASP
    recommends. The same holds after a semicolon, which separates cells in many locales.

    >>> csv_text("=1+1"), csv_text("a;-b"), csv_text("a-b")
    ("'=1+1", "a;'-b", 'a-b')
    """
    return _FORMULA.sub(r"\1\2'", printable(text))
