"""Passwords in URLs, kept out of everything that is written or shown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MASK = "***"
_USER_INFO = re.compile(r"(://[^:/@\s]*:)[^@\s]+(?=@)")
_PARAMETER = re.compile(r"([?&](?:password|passwd|token|secret)=)[^&\s]+", re.IGNORECASE)
_MASKED = re.compile(rf"(://[^:/@\s]*:{re.escape(MASK)}@|[?&]\w+={re.escape(MASK)}(&|$))")


def mask(text: str) -> str:
    """The text with the password of each URL in it replaced.

    >>> mask("ledger.url=postgresql://ann:s3cret@db/ledger?sslmode=require")
    'ledger.url=postgresql://ann:***@db/ledger?sslmode=require'
    """
    return _PARAMETER.sub(rf"\1{MASK}", _USER_INFO.sub(rf"\1{MASK}", text))


def masked(document: Any) -> Any:  # noqa: ANN401 - any JSON
    """A JSON document with every text masked."""
    if isinstance(document, str):
        return mask(document)
    if isinstance(document, Mapping):
        return {key: masked(value) for key, value in document.items()}
    if isinstance(document, Sequence):
        return [masked(value) for value in document]
    return document


def masked_keys(document: Any, key: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401 - any JSON
    """The dotted keys whose text has lost its password, with the text."""
    if isinstance(document, str):
        if _MASKED.search(document):
            yield key, document
    elif isinstance(document, Mapping):
        for name, value in document.items():
            yield from masked_keys(value, f"{key}.{name}" if key else str(name))
    elif isinstance(document, Sequence):
        for place, value in enumerate(document):
            yield from masked_keys(value, f"{key}[{place}]")
