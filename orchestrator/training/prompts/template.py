"""Renders the task's template with the fields of a question."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

from orchestrator.errors import ConfigError

_PIECE = re.compile(r"\{\{|\}\}|\{(\w+)\}")


def render(template: str, fields: Mapping[str, Any], hidden: Set[str]) -> str:
    """Replace each `{field}` in `template`. Braces inside a value are kept. `{{` and `}}` write braces; other
    braces stay unchanged.

    Lists are joined by commas. Raises ConfigError if the template names a field that is missing or is
    `hidden` because it contains the answer.

    >>> render("{question} \\\\boxed{}", {"question": "What is {1}?"}, set())
    'What is {1}? \\\\boxed{}'
    >>> render("{numbers}={target}", {"numbers": [3, 6, 2], "target": 7}, set())
    '3,6,2=7'
    """

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return match.group(0)[0]
        if name not in fields or name in hidden:
            raise _unknown(name, sorted(fields.keys() - hidden))
        return _as_text(fields[name])

    return _PIECE.sub(replace, template)


def template_fields(template: str) -> set[str]:
    """The names of the fields in the template."""
    return {match.group(1) for match in _PIECE.finditer(template)} - {None}


def _as_text(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(map(str, value))
    return str(value)


def _unknown(name: str, allowed: list[str]) -> ConfigError:
    return ConfigError(
        "task.template",
        f"{{{name}}}",
        ", ".join(f"{{{field}}}" for field in allowed),
        "write {{ and }} for literal braces",
    )
