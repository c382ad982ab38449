"""Masks secrets in URLs before they are written or shown: passwords, and the paths of webhooks, because
anyone who knows the path can post there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MASK = "***"
_USER_INFO = re.compile(r"(://[^:/@\s]*:)(?:[^\s/?#]+|[^@\s]+)(?=@)")
"""A password extends to the last `@` before the path, so that one with an unquoted
`@` is masked completely.
"""
_PARAMETER = re.compile(r"([?&](?:password|passwd|token|secret)=)[^&\s]+", re.IGNORECASE)
_SERVER = re.compile(r"(?>(?:[a-z][a-z0-9+.-]*://)?[^/?#\s]*)", re.IGNORECASE)
_WEBHOOK = re.compile(
    rf"(webhook['\"]?\s*[=:]\s*['\"]?{_SERVER.pattern}|https?://(?=hooks\.|\S*webhook)[^/?#\s]+)"
    r"[/?#]\S+?(?=['\"]?,?(?:\s|$))",
    re.IGNORECASE,
)
"""The URL after a webhook's key in an override or a line of YAML, or any URL that looks like a webhook."""
_MASKED = re.compile(
    rf"(://[^:/@\s]*:{re.escape(MASK)}@|[?&]\w+={re.escape(MASK)}(&|$)|://[^/\s]+/{re.escape(MASK)}$)"
)


def mask(text: str) -> str:
    """Mask the password of each URL in a text, and everything after the host of a webhook.

    >>> mask("ledger.url=postgresql://ann:s3cret@db/ledger?sslmode=require")
    'ledger.url=postgresql://ann:***@db/ledger?sslmode=require'
    >>> mask("budget.webhook=https://hooks.slack.com/services/T0/B0/s3cret")
    'budget.webhook=https://hooks.slack.com/***'
    >>> mask("postgresql://u:s3c@ret@h/db")
    'postgresql://u:***@h/db'
    """
    without_paths = _WEBHOOK.sub(rf"\1/{MASK}", text)
    return _PARAMETER.sub(rf"\1{MASK}", _USER_INFO.sub(rf"\1{MASK}", without_paths))


def mask_value(key: str, text: str) -> str:
    """Mask the value of a key. Only the host of a webhook is shown.

    >>> mask_value("budget.webhook", "https://hooks.slack.com/services/T0/B0/s3cret")
    'https://hooks.slack.com/***'
    """
    if not key.lower().endswith("webhook"):
        return mask(text)
    match = _SERVER.match(text)
    server = match.group() if match else ""
    return mask(server) + (f"/{MASK}" if text[len(server) :].strip("/") else text[len(server) :])


def masked(document: Any, key: str = "") -> Any:  # noqa: ANN401 - any JSON
    """Mask every string in a JSON document, which is the value of `key`."""
    if isinstance(document, str):
        return mask_value(key, document)
    if isinstance(document, Mapping):
        return {name: masked(value, str(name)) for name, value in document.items()}
    if isinstance(document, Sequence):
        return [masked(value, key) for value in document]
    return document


def masked_keys(document: Any, key: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401 - any JSON
    """The dotted keys whose values contain a masked secret, with those values."""
    if isinstance(document, str):
        if _MASKED.search(document):
            yield key, document
    elif isinstance(document, Mapping):
        for name, value in document.items():
            yield from masked_keys(value, f"{key}.{name}" if key else str(name))
    elif isinstance(document, Sequence):
        for place, value in enumerate(document):
            yield from masked_keys(value, f"{key}[{place}]")
