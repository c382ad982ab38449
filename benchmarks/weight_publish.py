"""What it takes to bring new weights from the learner's rank 0 to two rollout workers, against a plain memcpy
of the same bytes, measured in turn in the same processes.

    python benchmarks/weight_publish.py [--json] [--model smollm2_135m] [--channel shared_memory] [--rounds 9]

Three processes: one has the model as the learner has it at ZeRO 0 to 2, two have rollout engines (`hf`). A
round is

- channel: `publish` in the first, then `pull` and `load_weights` in both workers at once. Seconds: those of
  the publish and those of the slower pull, taken inside the processes.
- memcpy: as many copies of as many bytes by the same processes: one in the first, then one in each worker at
  once, between two flat arrays of its own whose pages are there. Seconds are taken alike.

Each process computes with one thread. `ratio` is memcpy's seconds by the channel's, the median over the
rounds (1 is the speed of memcpy); `cpu_ratio` the same of CPU seconds, which other work on the machine
disturbs less. Rounds before the counted ones bring the channel's own memory into place.

Memory, in rounds of their own: the highest private memory (RssAnon) of a process while it publishes or pulls
minus that just before, in buckets of `learner.bucket_bytes`. What a channel itself keeps is shared memory,
and not in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import numpy as np
import ray
import torch
from machine import describe, write_result

from orchestrator.config import compose
from orchestrator.run_config import RunConfig
from orchestrator.training.buckets import Allocate, Bucket, NamedTensor, flatten, unflatten
from orchestrator.training.cluster.weights import make_channel
from orchestrator.training.models.build import build_model

MODELS = ("tiny_moe", "smollm2_135m")
CHANNELS = ("shared_memory", "object_store")
WORKERS = 2
WARM_UP = 3
MEMORY_ROUNDS = 2
TARGET_RATIO = 0.6
TARGET_BUCKETS = 1.2

Timing = tuple[float, float]
"""Wall and CPU seconds."""


class PeakMemory:
    """The most private memory of this process while its `with` is open, above that at the start."""

    def __enter__(self) -> Self:
        self.bytes = 0
        self._start = private_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.bytes = max(self.bytes, private_bytes() - self._start)
            time.sleep(0.0002)


def private_bytes() -> int:
    """RssAnon: memory of this process alone, not what it shares through files or shared memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class Process:
    """What the learner's rank 0 and the workers have in common."""

    def __init__(self, config: RunConfig, channel: str) -> None:
        torch.set_num_threads(1)
        self._channel = make_channel(channel)
        self._config = config

    def prepare_memcpy(self, size: int) -> None:
        """Two arrays of `size` bytes whose pages are there."""
        self._source, self._target = np.ones(size, np.uint8), np.ones(size, np.uint8)

    def memcpy(self) -> Timing:
        """Copy one to the other."""
        return timed(lambda: np.copyto(self._target, self._source))[0]


class Rank0(Process):
    """The learner's side."""

    def __init__(self, config: RunConfig, channel: str) -> None:
        super().__init__(config, channel)
        model = build_model(config.model, config.seed)
        kept = model.state_dict()
        buffers = [(name, kept[name]) for name, _ in model.named_buffers() if name in kept]
        self._tensors: list[NamedTensor] = [*model.named_parameters(), *buffers]

    def size(self) -> tuple[int, int]:
        """Bytes and number of the tensors."""
        return sum(tensor.nbytes for _, tensor in self._tensors), len(self._tensors)

    def publish(self, version: int) -> tuple[Any, Timing]:
        """The handle, and what it took."""

        def buckets(allocate: Allocate) -> Iterator[Bucket]:
            return flatten(self._tensors, self._config.learner.bucket_bytes, allocate)

        timing, handle = timed(lambda: self._channel.publish(version, buckets))
        return handle, timing

    def publish_watched(self, version: int) -> tuple[Any, int]:
        """The handle, and the extra bytes at the peak."""
        with PeakMemory() as peak:
            handle, _ = self.publish(version)
        return handle, peak.bytes


class Worker(Process):
    """A rollout worker's side."""

    def __init__(self, config: RunConfig, channel: str) -> None:
        super().__init__(config, channel)
        from orchestrator.training.rollouts.engines import ENGINES  # here: it must not travel with the class

        self._engine = ENGINES.get("hf")(config.model, config.rollout, torch.device("cpu"), config.seed + 1)

    def pull(self, version: int, handle: Any) -> Timing:  # noqa: ANN401 - the channel's own
        """What it took."""

        def load() -> None:
            with closing(self._channel.pull(handle)) as buckets:
                self._engine.load_weights(version, unflatten(buckets, self._engine.weight_storage))

        return timed(load)[0]

    def pull_watched(self, version: int, handle: Any) -> int:  # noqa: ANN401
        """The extra bytes at the peak."""
        with PeakMemory() as peak:
            self.pull(version, handle)
        return peak.bytes


def timed(work: Callable[[], Any]) -> tuple[Timing, Any]:
    """Seconds, and what `work` returned."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return (time.perf_counter() - wall, time.process_time() - cpu), result


def measure(model: str, channel: str, rounds: int) -> dict[str, Any]:
    """One row."""
    config = compose("grpo", [f"model={model}", "tracking=none"])
    first: Any = ray.remote(Rank0).remote(config, channel)
    workers: list[Any] = [ray.remote(Worker).remote(config, channel) for _ in range(WORKERS)]
    size, tensors = _get(first.size.remote())
    _get([process.prepare_memcpy.remote(size) for process in (first, *workers)])
    seen: list[tuple[Timing, Timing]] = []
    for version in range(WARM_UP + rounds):
        handle, published = _get(first.publish.remote(version))
        pulled = _get([worker.pull.remote(version, handle) for worker in workers])
        copied = _get(first.memcpy.remote())
        received = _get([worker.memcpy.remote() for worker in workers])
        seen.append((_together(published, pulled), _together(copied, received)))
    peaks: list[list[int]] = []
    for version in range(WARM_UP + rounds, WARM_UP + rounds + MEMORY_ROUNDS):
        handle, peak = _get(first.publish_watched.remote(version))
        peaks.append([peak, *_get([worker.pull_watched.remote(version, handle) for worker in workers])])
    for process in (first, *workers):
        ray.kill(process)
    bucket = config.learner.bucket_bytes
    return {
        "model": model,
        "channel": channel,
        "bytes": size,
        "tensors": tensors,
        "workers": WORKERS,
        "bucket_bytes": bucket,
        "rounds": rounds,
        "publish_and_pull_ms": round(1000 * statistics.median(ours[0] for ours, _ in seen[WARM_UP:]), 2),
        "memcpy_ms": round(1000 * statistics.median(plain[0] for _, plain in seen[WARM_UP:]), 2),
        "ratio": round(statistics.median(plain[0] / ours[0] for ours, plain in seen[WARM_UP:]), 2),
        "cpu_ratio": round(statistics.median(plain[1] / ours[1] for ours, plain in seen[WARM_UP:]), 2),
        "publish_extra_buckets": round(max(peak[0] for peak in peaks) / bucket, 3),
        "pull_extra_buckets": round(max(max(peak[1:]) for peak in peaks) / bucket, 3),
        "target_ratio": TARGET_RATIO,
        "target_extra_buckets": TARGET_BUCKETS,
    }


def _together(one: Timing, others: list[Timing]) -> Timing:
    """One after the other on the clock, the workers at once; CPU seconds of all."""
    return one[0] + max(wall for wall, _ in others), one[1] + sum(cpu for _, cpu in others)


def _get(refs: Any) -> Any:  # noqa: ANN401 - Ray's handles have no static type
    return ray.get(refs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout instead of a table")
    parser.add_argument("--model", choices=MODELS, action="append", help="default: all of them")
    parser.add_argument("--channel", choices=CHANNELS, action="append", help="default: all of them")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    ray.init(
        num_cpus=WORKERS + 1, include_dashboard=False, log_to_driver=False, object_store_memory=4 * 2**30
    )
    models, channels = arguments.model or MODELS, arguments.channel or CHANNELS
    rows = [measure(model, channel, arguments.rounds) for model in models for channel in channels]
    ray.shutdown()
    if arguments.model is None and arguments.channel is None:
        write_result("weight_publish", rows)
    if arguments.json:
        json.dump({"machine": describe(), "rows": rows}, sys.stdout, indent=2)
        return
    columns = ("model", "channel", "publish_and_pull_ms", "memcpy_ms", "ratio", "cpu_ratio")
    columns = (*columns, "publish_extra_buckets", "pull_extra_buckets")
    print("  ".join(f"{column:>21}" for column in columns))
    for row in rows:
        print("  ".join(f"{row[column]!s:>21}" for column in columns))


if __name__ == "__main__":
    main()
