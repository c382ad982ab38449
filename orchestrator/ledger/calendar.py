"""Days and months of UTC as integers: an entry never crosses midnight, so it has one price and one month."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

HOUR_NS = 3_600_000_000_000
DAY_NS = 24 * HOUR_NS
_EPOCH = date(1970, 1, 1)


def day_of(at_ns: int) -> int:
    """The day since 1970-01-01 (UTC) that the instant falls on."""
    return at_ns // DAY_NS


def date_of(day: int) -> date:
    """The date of a day number."""
    return _EPOCH + timedelta(days=day)


def day_number(day: date) -> int:
    """The day number of a date; `date_of` gives it back."""
    return (day - _EPOCH).days


def month_of(day: int) -> str:
    """The month of a day number.

    >>> month_of(day_number(date(2026, 11, 23)))
    '2026-11'
    """
    return date_of(day).strftime("%Y-%m")


def month_bounds(month: str) -> tuple[int, int]:
    """First day number of a month `YYYY-MM`, and of the next one. Raises ValueError if it is no month."""
    first = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC).date()
    following = (first + timedelta(days=32)).replace(day=1)
    return day_number(first), day_number(following)


def cut_at_midnight(start_ns: int, end_ns: int) -> Iterator[tuple[int, int]]:
    """The pieces of [start, end), one a day; none if it is empty."""
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
    """First day number of a date `YYYY-MM-DD` or a month `YYYY-MM`, and the day after its last.

    Raises ValueError.
    """
    if len(text) == len("YYYY-MM"):
        return month_bounds(text)
    day = day_number(date.fromisoformat(text))
    return day, day + 1


def parse_moment(text: str) -> int:
    """Nanoseconds of the last moment of a date `YYYY-MM-DD`, or of an ISO 8601 time (UTC unless it says
    otherwise).

    Raises ValueError.
    """
    if len(text) == len("YYYY-MM-DD"):
        return (day_number(date.fromisoformat(text)) + 1) * DAY_NS - 1
    at = datetime.fromisoformat(text)
    since = (at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since // timedelta(microseconds=1)) * 1000
