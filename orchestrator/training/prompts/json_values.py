"""Converts rows to plain JSON values, which are sent to the scorer processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert NumPy numbers to Python numbers, bytes to None, and other objects
    (fractions, decimals, dates) to text.
    """
    return json.loads(json.dumps(dict(values), default=_plain))


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    return None if isinstance(value, bytes) else str(value)
