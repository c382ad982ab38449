"""Formats numbers for people, in the same way on the terminal and in reports."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from decimal import Decimal

SAMPLED = re.compile(r"eval/(pass|maj)_at_(\d+)")


def money(amount: Decimal) -> str:
    """Two decimals, or two significant digits where that would hide a small amount.

    >>> money(Decimal("1234.567")), money(Decimal("0.004567")), money(Decimal(0))
    ('1,234.57', '0.0046', '0.00')
    """
    if amount == 0 or abs(amount) >= Decimal("0.1"):
        return f"{amount:,.2f}"
    return f"{amount:.{1 - amount.adjusted()}f}"


def short(value: float) -> str:
    """A metric's value in about six characters. An accuracy below 1 is not shown as 1.

    >>> short(0.25), short(0.000125), short(31.25), short(12345.6)
    ('0.25', '0.000125', '31.2', '12,346')
    >>> short(0.9961), short(0.99999), short(1.0)
    ('0.996', '0.999', '1.00')
    """
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if 0.995 <= value < 1:
        return f"{math.floor(1000 * value) / 1000:.3f}"
    return f"{value:.3g}" if abs(value) >= 10 or 0 < abs(value) < 0.01 else f"{value:.2f}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> duration(75.4), duration(3725)
    ('1:15', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def sampled_accuracies(names: Iterable[str]) -> list[tuple[str, str]]:
    """The metrics of sampled held-out answers to show, with their labels: pass@k and maj@k for the
    largest k among `names`.

    >>> sampled_accuracies(["eval/pass_at_1", "eval/pass_at_8", "eval/maj_at_8", "reward/mean"])
    [('eval/pass_at_8', 'pass@8'), ('eval/maj_at_8', 'maj@8')]
    """
    found = {(match[1], int(match[2])) for name in names if (match := SAMPLED.fullmatch(name))}
    most = {kind: max(k for name, k in found if name == kind) for kind, _ in found}
    return [
        (f"eval/{kind}_at_{most[kind]}", f"{kind}@{most[kind]}") for kind in ("pass", "maj") if kind in most
    ]
