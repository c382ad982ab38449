"""Days and months of UTC as integers. An entry never crosses midnight, so it has one price and
belongs to one month.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

HOUR_NS = 3_600_000_000_000
DAY_NS = 24 * HOUR_NS
_EPOCH = date(1970, 1, 1)


def day_of(at_ns: int) -> int:
    """The number of the day (UTC, counted from 1970-01-01) that contains a time."""
    return at_ns // DAY_NS


def date_of(day: int) -> date:
    return _EPOCH + timedelta(days=day)


def day_number(day: date) -> int:
    """The number of a day; `date_of` is its inverse."""
    return (day - _EPOCH).days


def month_of(day: int) -> str:
    """The month of a day number.

    >>> month_of(day_number(date(2026, 11, 23)))
    '2026-11'
    """
    return date_of(day).strftime("%Y-%m")


def month_bounds(month: str) -> tuple[int, int]:
    """The first day of a month `YYYY-MM` and the first day of the next one. Raises ValueError."""
    first = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC).date()
    following = (first + timedelta(days=32)).replace(day=1)
    return day_number(first), day_number(following)


def cut_at_midnight(start_ns: int, end_ns: int) -> Iterator[tuple[int, int]]:
    """Split [start, end) into one interval per day; none if it is empty."""
    while start_ns < end_ns:
        piece_end = min(end_ns, (start_ns // DAY_NS + 1) * DAY_NS)
        yield start_ns, piece_end
        start_ns = piece_end


def following_month(month: str) -> str:
    """The month after `month`.

    >>> following_month("2026-12")
    '2027-01'
    """
    return month_of(month_bounds(month)[1])


def parse_period(text: str) -> tuple[int, int]:
    """The first day of a date `YYYY-MM-DD` or a month `YYYY-MM`, and the day after its last.

    Raises ValueError.
    """
    if len(text) == len("YYYY-MM"):
        return month_bounds(text)
    day = day_number(date.fromisoformat(text))
    return day, day + 1


def parse_moment(text: str) -> int:
    """The last nanosecond of a date `YYYY-MM-DD`, or the time given in ISO 8601 (UTC unless it
    has an offset).

    Raises ValueError.
    """
    if len(text) == len("YYYY-MM-DD"):
        return (day_number(date.fromisoformat(text)) + 1) * DAY_NS - 1
    at = datetime.fromisoformat(text)
    since = (at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since // timedelta(microseconds=1)) * 1000
