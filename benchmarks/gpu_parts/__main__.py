"""Runs parts in this process. Each measurement is printed as one line of JSON when it is done.

python -m benchmarks.gpu_parts PART [PART ...] --device cuda --size full
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu_parts.models import SIZES, Family, Size

if TYPE_CHECKING:
    from benchmarks.gpu_parts.sampling import Sampling

PREFIX = "measurement "
"""Other programs print to the same stream; a line with this prefix is a measurement."""

Measure = Callable[[], dict[str, Any]]


def parts(size: Size, device: torch.device) -> Mapping[str, Mapping[str, Measure]]:
    """The measurements of each part, by their names. A measurement imports what it needs, so that a missing
    package only fails those that need it.
    """

    def limits() -> dict[str, Any]:
        from benchmarks.gpu_parts.device import measure_device

        return measure_device(device, size)

    def publish() -> dict[str, Any]:
        from benchmarks.gpu_parts.publishing import publish

        return publish(size, device)

    return {
        "device": {"limits": limits},
        "sampling_dense": _sampling(size, "dense", device),
        "sampling_moe": _sampling(size, "moe", device),
        "learning_dense": _learning(size, "dense", device),
        "learning_moe": _learning(size, "moe", device),
        "publish": {"shared_memory": publish},
    }


def _sampling(size: Size, family: Family, device: torch.device) -> Mapping[str, Measure]:
    @functools.cache
    def sampling() -> Sampling:
        from benchmarks.gpu_parts.sampling import Sampling

        return Sampling(size, family, device)

    return {"speed": lambda: sampling().speed(), "logprob_gap": lambda: sampling().logprob_gap()}


def _learning(size: Size, family: Family, device: torch.device) -> Mapping[str, Measure]:
    def plain() -> dict[str, Any]:
        from benchmarks.gpu_parts.learning import plain_update

        return plain_update(size, family, device)

    def learner() -> dict[str, Any]:
        from benchmarks.gpu_parts.learning import learner_update

        return learner_update(size, family, device)

    return {"plain_update": plain, "learner_update": learner}


def measured(part: str, name: str, measure: Measure) -> dict[str, Any]:
    """The row of a measurement. An exception is its result too, so that the others still run."""
    start = time.perf_counter()
    try:
        values, status, reason = measure(), "measured", ""
    except Exception as error:  # noqa: BLE001 - whatever it is, the next measurement does not depend on it
        values, status, reason = {}, "failed", f"{type(error).__name__}: {error}"
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    seconds = round(time.perf_counter() - start, 2)
    row = {"part": part, "measurement": name, "status": status, "seconds": seconds}
    return {**row, "values": values, "reason": reason}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=list(SIZES), default="full")
    arguments = parser.parse_args()
    known = parts(SIZES[arguments.size], torch.device(arguments.device))
    for part in arguments.parts:
        for name, measure in known[part].items():
            print(PREFIX + json.dumps(measured(part, name, measure)), flush=True)


if __name__ == "__main__":
    main()
