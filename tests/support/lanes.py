"""Which variants of a parametrised test `make test` runs, and which only `make test-all`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def also_long(always: Iterable[object], long: Iterable[object]) -> list[Any]:
    """Parameters of a test: those of `long` run in `make test-all` only."""
    return [*always, *(pytest.param(value, marks=pytest.mark.long) for value in long)]
