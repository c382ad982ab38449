"""Decides who pays for idle and lost time: it is reported separately, or charged to those who used the same
lease on the same day.

The methods are those of OpenCost: `keep` leaves idle and lost time as separate lines, `proportional` divides
it among the uses of its lease on that day in proportion to their time, `uniform` divides it equally. Time of
a lease that nobody used that day is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from orchestrator.ledger.accounts import CountedLine
from orchestrator.ledger.errors import LedgerError
from orchestrator.ledger.events import IDLE, LOST

METHODS = ("keep", "proportional", "uniform")


def share_idle(lines: Iterable[CountedLine], method: str) -> list[CountedLine]:
    """The lines with idle and lost time shared, to the nanosecond. Raises LedgerError for an unknown method.

    Reversals in an adjustment are left as they are, because what they reverse was posted unshared.
    """
    if method not in METHODS:
        raise LedgerError("idle", method, ", ".join(METHODS))
    if method == "keep":
        return list(lines)
    shared: list[CountedLine] = []
    ordered = sorted(lines, key=lambda line: (_place(line), line))
    for _, found in groupby(ordered, key=_place):
        group = list(found)
        used = [line for line in group if line.key.activity not in (IDLE, LOST)]
        unused = [line for line in group if line.key.activity in (IDLE, LOST)]
        if not used or any(line.ns < 0 for line in group):
            shared.extend(group)
            continue
        weights = [line.ns if method == "proportional" else 1 for line in used]
        shares = apportion(sum(line.ns for line in unused), weights)
        shared.extend(line._replace(ns=line.ns + share) for line, share in zip(used, shares, strict=True))
    return shared


def _place(line: CountedLine) -> tuple[str, int, str]:
    return (line.posted, line.key.day, line.key.lease_id)


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Split `total` into integers in proportion to `weights` (not all 0), by largest remainder, ties to
    the earlier one.

    >>> apportion(10, [1, 1, 1])
    [4, 3, 3]
    """
    whole = sum(weights)
    shares = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda place: (-(total * weights[place] % whole), place))
    for place in by_remainder[: total - sum(shares)]:
        shares[place] += 1
    return shares
