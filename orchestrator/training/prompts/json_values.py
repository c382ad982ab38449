"""Rows as plain JSON values: what travels to the scorers' process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """NumPy numbers become Python's, other objects (fractions, decimals, dates) their text, bytes None."""
    return json.loads(json.dumps(dict(values), default=_plain))


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    return None if isinstance(value, bytes) else str(value)
