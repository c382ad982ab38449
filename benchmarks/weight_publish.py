"""Measures the transfer of new weights from the learner's rank 0 to two rollout workers, compared with a
plain memcpy of the same bytes, measured alternately in the same processes.

    python benchmarks/weight_publish.py [--json] [--model smollm2_135m] [--channel shared_memory] [--rounds 9]

The learner is the real one with ZeRO 1: one rank, or two ranks with half of the experts each. Two more
processes have rollout engines (`hf`). A round is

- channel: `publish` in the ranks, then `pull` and load in both workers at once. Seconds are those of rank 0's
  publish, once all ranks have started it, plus those of the slower pull, measured inside the processes; CPU
  seconds are those of all ranks and workers.
- memcpy: the same number of bytes, copied once by rank 0 alone, whatever the number of ranks, then by both
  workers at once, between two flat arrays whose pages are allocated. Seconds are measured in the same way.
- transfer: the experts of another rank, sent to rank 0 in one message by torch.distributed alone.

Each process computes with one thread. `ratio` is memcpy's seconds divided by the channel's, the median over
the rounds (1 is the speed of memcpy); `cpu_ratio` is the same for CPU seconds, which other work on the
machine disturbs less. Warm-up rounds allocate the channel's own memory.

Memory, in separate rounds: the peak of the private memory (RssAnon) of a process while it publishes or
pulls, minus that just before, in buckets of `learner.bucket_bytes`. The storage of the channel is
shared memory and not included.
"""

from __future__ import annotations

import argparse
import json
import math
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import numpy as np
import ray
import torch
import torch.distributed as dist
from machine import describe, write_result
from torch._C._distributed_c10d import TCPStore

from orchestrator.config.compose import compose
from orchestrator.config.run_config import RunConfig
from orchestrator.launch.assembly import run_spec
from orchestrator.training.cluster.build_learner import build_learner
from orchestrator.training.cluster.object_store_channel import make_channel
from orchestrator.training.learner.sharding.distributed import DistributedInit
from orchestrator.training.tensors.buckets import Piece
from orchestrator.training.weights.publishing import WeightPublisher
from orchestrator.training.weights.rendezvous import Rendezvous

MODELS = {"tiny_moe": (1, 2), "moe_70m": (1, 2), "smollm2_135m": (1,)}
"""With the expert-parallel sizes to publish from."""
OVERRIDES = {
    "tiny_moe": ["model=tiny_moe"],
    "moe_70m": [
        "model=tiny_moe",
        "model.name=moe_70m",
        *(
            f"model.architecture.{key}={value}"
            for key, value in {
                "hidden_size": 512,
                "num_hidden_layers": 6,
                "intermediate_size": 1024,
                "n_routed_experts": 16,
                "moe_intermediate_size": 512,
                "kv_lora_rank": 128,
                "qk_nope_head_dim": 64,
                "qk_rope_head_dim": 32,
                "v_head_dim": 64,
            }.items()
        ),
    ],
    "smollm2_135m": ["model=smollm2_135m"],
}
"""`moe_70m` is the tiny model, enlarged so that the bytes rather than the calls take the time."""
CHANNELS = ("shared_memory", "object_store")
WORKERS = 2
WARM_UP = 3
MEMORY_ROUNDS = 2
TARGET_RATIO = 0.6
TARGET_BUCKETS = 1.2

Timing = tuple[float, float]
"""Wall and CPU seconds."""


class PeakMemory:
    """The maximum private memory of this process while its `with` is open, minus that at the start."""

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
    """RssAnon: memory of this process alone, excluding what it shares through files or shared memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class Process:
    """Shared by the learner's rank 0 and the workers."""

    def __init__(self, config: RunConfig, channel: str) -> None:
        torch.set_num_threads(1)
        self._channel = make_channel(config.weights.model_copy(update={"channel": channel}))
        self._config = config

    def prepare_memcpy(self, size: int) -> None:
        """Allocate two arrays of `size` bytes with their pages."""
        self._source, self._target = np.ones(size, np.uint8), np.ones(size, np.uint8)

    def memcpy(self) -> Timing:
        """Copy one array to the other."""
        return timed(lambda: np.copyto(self._target, self._source))[0]


class Rank(Process):
    """A rank of the learner."""

    def address(self) -> tuple[str, int]:
        """The address at which the other ranks find this one."""
        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return host, probe.getsockname()[1]

    def setup(self, rank: int, address: tuple[str, int], directory: Path) -> tuple[int, int, int]:
        """Build the rank together with the others. Returns the bytes and number of the weights, and
        the bytes that other ranks hold.
        """
        size = self._config.learner.world_size
        init = DistributedInit(rank, size, "gloo", "cpu", TCPStore(*address, size, rank == 0))
        self._learner = build_learner(init, run_spec(self._config, "benchmark", 1, directory))
        name, timeout = ":".join(map(str, address)), self._config.weights.timeout_seconds
        rendezvous = Rendezvous(name, size, timeout, secret=b"benchmark")
        self._publisher = WeightPublisher(rank, self._learner, self._channel, rendezvous)
        buckets = list(self._learner.weights())
        whole = [piece for bucket in buckets for piece in bucket.pieces if not piece.start]
        far = torch.tensor(sum(_far_bytes(piece, size) for piece in whole))
        dist.broadcast(far, 0)  # the other ranks receive no buckets
        self._far = torch.ones(int(far), dtype=torch.uint8)
        return sum(bucket.data.nbytes for bucket in buckets), len(whole), self._far.nbytes

    def publish(self, version: int) -> tuple[Any, Timing]:
        """Return the handle, and the time from the moment when all ranks have started to publish."""
        dist.barrier()
        timing, handle = timed(lambda: self._publisher.publish(version))
        return handle, timing

    def transfer(self) -> Timing:
        """Transfer the bytes that other ranks hold in one message."""
        dist.barrier()
        if not len(self._far):
            return 0.0, 0.0
        if dist.get_rank():
            return timed(lambda: dist.send(self._far, 0))[0]
        return timed(lambda: dist.recv(self._far, 1))[0]

    def publish_watched(self, version: int) -> tuple[Any, int]:
        """Return the handle, and the additional bytes at the peak."""
        dist.barrier()
        with PeakMemory() as peak:
            handle = self._publisher.publish(version)
        return handle, peak.bytes


def _far_bytes(piece: Piece, size: int) -> int:
    """The bytes of a tensor that must be sent to rank 0."""
    if size == 1 or ".experts." not in piece.name:
        return 0
    return math.prod(piece.shape) * getattr(torch, piece.dtype).itemsize * (size - 1) // size


class Worker(Process):
    """The side of a rollout worker."""

    def __init__(self, config: RunConfig, channel: str) -> None:
        super().__init__(config, channel)
        # Imported here, because they must not be pickled with the class.
        from orchestrator.training.rollouts.engines.hf.engine import build
        from orchestrator.training.rollouts.loading import WeightLoader

        engine = build(config.model, config.rollout, torch.device("cpu"), config.seed + 1)
        self._loader = WeightLoader(engine.sampler)

    def pull(self, version: int, handle: Any) -> Timing:  # noqa: ANN401 - the channel's own
        """Pull and load a version. Returns the time."""

        def load() -> None:
            with closing(self._channel.pull(handle)) as buckets:
                self._loader.load(version, buckets)

        return timed(load)[0]

    def pull_watched(self, version: int, handle: Any) -> int:  # noqa: ANN401
        """The additional bytes at the peak."""
        with PeakMemory() as peak:
            self.pull(version, handle)
        return peak.bytes


def timed(work: Callable[[], Any]) -> tuple[Timing, Any]:
    """The seconds, and the return value of `work`."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return (time.perf_counter() - wall, time.process_time() - cpu), result


def measure(
    model: str, expert_parallel_size: int, channel: str, rounds: int, directory: Path
) -> dict[str, Any]:
    """Measure one row."""
    size = f"learner.expert_parallel_size={expert_parallel_size}"
    world_size = f"learner.world_size={expert_parallel_size}"
    overrides = [*OVERRIDES[model], "tracking=none", world_size, size]
    config = compose("grpo", [*overrides, "learner.zero_stage=1"])
    ranks: list[Any] = [ray.remote(Rank).remote(config, channel) for _ in range(expert_parallel_size)]
    workers: list[Any] = [ray.remote(Worker).remote(config, channel) for _ in range(WORKERS)]
    address = _get(ranks[0].address.remote())
    setups = [rank.setup.remote(index, address, directory) for index, rank in enumerate(ranks)]
    weights, tensors, far = _get(setups)[0]
    _get([process.prepare_memcpy.remote(weights) for process in (*ranks, *workers)])
    seen: list[tuple[Timing, Timing, Timing]] = []
    for version in range(WARM_UP + rounds):
        handle, published = _first_of(_get([rank.publish.remote(version) for rank in ranks]))
        pulled = _get([worker.pull.remote(version, handle) for worker in workers])
        copied = _get(ranks[0].memcpy.remote())
        received = _get([worker.memcpy.remote() for worker in workers])
        sent = _get([rank.transfer.remote() for rank in ranks])[0]
        seen.append((_together(published, pulled), _together(copied, received), sent))
    peaks: list[list[int]] = []
    for version in range(WARM_UP + rounds, WARM_UP + rounds + MEMORY_ROUNDS):
        answers = _get([rank.publish_watched.remote(version) for rank in ranks])
        handle, peak = answers[0][0], max(peak for _, peak in answers)
        peaks.append([peak, *_get([worker.pull_watched.remote(version, handle) for worker in workers])])
    for process in (*ranks, *workers):
        ray.kill(process)
    counted, bucket = seen[WARM_UP:], config.learner.bucket_bytes
    return {
        "model": model,
        "expert_parallel_size": expert_parallel_size,
        "channel": channel,
        "bytes": weights,
        "tensors": tensors,
        "bytes_of_other_ranks": far,
        "workers": WORKERS,
        "bucket_bytes": bucket,
        "rounds": rounds,
        "publish_and_pull_ms": round(1000 * statistics.median(ours[0] for ours, _, _ in counted), 2),
        "memcpy_ms": round(1000 * statistics.median(plain[0] for _, plain, _ in counted), 2),
        "transfer_ms": round(1000 * statistics.median(sent[0] for _, _, sent in counted), 2),
        "ratio": round(statistics.median(plain[0] / ours[0] for ours, plain, _ in counted), 2),
        "cpu_ratio": round(statistics.median(plain[1] / ours[1] for ours, plain, _ in counted), 2),
        "publish_extra_buckets": round(max(peak[0] for peak in peaks) / bucket, 3),
        "pull_extra_buckets": round(max(max(peak[1:]) for peak in peaks) / bucket, 3),
        "target_ratio": TARGET_RATIO,
        "target_extra_buckets": TARGET_BUCKETS,
    }


def _first_of(answers: list[tuple[Any, Timing]]) -> tuple[Any, Timing]:
    """Rank 0's handle and wall seconds, and the CPU seconds of all ranks."""
    (handle, (wall, _)), *_ = answers
    return handle, (wall, sum(cpu for _, (_, cpu) in answers))


def _together(one: Timing, others: list[Timing]) -> Timing:
    """Wall seconds of one followed by the slowest of the others, and the CPU seconds of all."""
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
        num_cpus=WORKERS + 2, include_dashboard=False, log_to_driver=False, object_store_memory=4 * 2**30
    )
    models, channels = arguments.model or MODELS, arguments.channel or CHANNELS
    with tempfile.TemporaryDirectory() as directory:
        rows = [
            measure(model, size, channel, arguments.rounds, Path(directory))
            for model in models
            for size in MODELS[model]
            for channel in channels
        ]
    ray.shutdown()
    if arguments.model is None and arguments.channel is None:
        write_result("weight_publish", rows)
    if arguments.json:
        json.dump({"machine": describe(), "rows": rows}, sys.stdout, indent=2)
        return
    columns = ("model", "expert_parallel_size", "channel", "publish_and_pull_ms", "memcpy_ms", "transfer_ms")
    columns = (*columns, "ratio", "cpu_ratio", "publish_extra_buckets", "pull_extra_buckets")
    print("  ".join(f"{column:>21}" for column in columns))
    for row in rows:
        print("  ".join(f"{row[column]!s:>21}" for column in columns))


if __name__ == "__main__":
    main()
