"""Selects which variants of a parametrised test run in `make test`, and which only in `make test-all`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def also_long(always: Iterable[object], long: Iterable[object]) -> list[Any]:
    """Parameters of a test; those of `long` only run in `make test-all`."""
    return [*always, *(pytest.param(value, marks=pytest.mark.long) for value in long)]
