"""Slurm host lists: `n[01-03,07],login` is n01, n02, n03, n07 and login."""

from __future__ import annotations

import re
from itertools import product

MOST = 65_536
"""Longer lists are treated as mistakes; Slurm does not expand them either."""

_ITEM = re.compile(r"(?:[^\s,\[\]]|\[[^\s\[\]]+\])+")
_LIST = re.compile(f"{_ITEM.pattern}(?:,{_ITEM.pattern})*")
_PART = re.compile(r"\[([^\]]+)\]|([^\[]+)")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?", re.ASCII)


def expand(text: str) -> tuple[str, ...]:
    """The hosts of a list, in order, as `scontrol show hostnames` prints them. With several brackets
    in an item, the last one varies fastest. Numbers are zero-padded to the width of the first number
    of their range.

    Raises ValueError for a malformed list, a repeated host, or more than MOST hosts.

    >>> expand("r[1-2]n[08-10]")
    ('r1n08', 'r1n09', 'r1n10', 'r2n08', 'r2n09', 'r2n10')
    """
    if not _LIST.fullmatch(text):
        raise ValueError(f"not a host list: {text!r}")
    nodes: list[str] = []
    for item in _ITEM.findall(text):
        nodes.extend(_item(item, MOST - len(nodes)))
    if len(set(nodes)) != len(nodes):
        raise ValueError(f"repeated host: {text!r}")
    return tuple(nodes)


def _item(text: str, most: int) -> list[str]:
    parts: list[list[str]] = []
    count = 1
    for ranges, plain in _PART.findall(text):
        parts.append(_numbers(ranges, most) if ranges else [plain])
        count *= len(parts[-1])
        if count > most:
            raise ValueError(f"more than {MOST} hosts: {text!r}")
    return ["".join(choice) for choice in product(*parts)]


def _numbers(text: str, most: int) -> list[str]:
    numbers: list[str] = []
    for part in text.split(","):
        found = _RANGE.fullmatch(part)
        if found is None:
            raise ValueError(f"not a range of numbers: {part!r}")
        low, high = found[1], found[2] or found[1]
        if not int(low) <= int(high) < int(low) + most:
            raise ValueError(f"invalid range from {low} to {high}")
        numbers.extend(f"{number:0{len(low)}d}" for number in range(int(low), int(high) + 1))
        if len(numbers) > most:
            raise ValueError(f"more than {MOST} hosts: {text!r}")
    return numbers
