"""Compares the planner's estimates with values counted and measured on real models on this machine.

    python benchmarks/planner.py [--json] [--write] [--parts parameters flops activations state time]

- parameters, flops: exact (tests/support/capacity_measured.py describes how they are counted);
- activations: the tensors that autograd saves at the end of the layers, and the peak of a forward
  and backward pass;
- state: bytes that DeepSpeed holds before the step of a second update, on 1 and 2 ranks, stages 0 to 3;
- time: CPU seconds of a learner's update on one thread. Two updates of the same model on rows of another
  length calibrate the machine (seconds per operation and a constant per update); the planner then predicts
  longer rows, more rows and, where the table says so, a deeper model. It extrapolates to other amounts of
  work, not to another width or another machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from transformers import PreTrainedModel

from benchmarks.machine import write_result
from orchestrator.capacity.activations import MicroBatch, micro_batch_activations
from orchestrator.capacity.flops import Pass, inference_flops, training_flops
from orchestrator.capacity.parameters import total_parameters
from orchestrator.capacity.shape import ModelShape, read_shape
from orchestrator.capacity.state import Sharding, learner_state
from orchestrator.training.learner.deepspeed_learner import DeepSpeedLearner, PolicyModel
from orchestrator.training.learner.sharding.distributed import DistributedInit
from orchestrator.training.models.characters import character_tokenizer
from orchestrator.training.records import BatchPart
from tests.fakes.rollout_batches import random_part
from tests.support.capacity_measured import (
    PUBLISHED,
    Architecture,
    build,
    counted_flops,
    engine_bytes,
    measured_pass,
    medium_architectures,
    parameter_sizes,
    published,
    small_architectures,
    smollm2,
)
from tests.support.exactness_setting import Case, batch, learner_config, update_rule
from tests.support.moe_families import build as build_exactness_model
from tests.support.ranks import start_ranks, tcp_store

ROWS, LENGTH, TRAINED = 8, 128, 700
REPEATS = 5
GROUP_SIZE = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One number, planned and measured; `error` is planned / measured - 1."""

    part: str
    model: str
    case: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """The relative error; 0 if both are 0."""
        return self.predicted / self.measured - 1 if self.measured else float(self.predicted != 0)


def parameters() -> Iterator[Row]:
    """Every family at a small size, and the published models at full size."""
    cases = {
        **small_architectures(),
        **{name: published(name) for name in PUBLISHED},
        "smollm2_135m": smollm2(),
    }
    for name, architecture in cases.items():
        planned = total_parameters(read_shape(architecture)).total
        yield Row("parameters", name, "total", planned, sum(parameter_sizes(architecture)))


def flops() -> Iterator[Row]:
    """Forward, and forward and backward, with and without recomputation."""
    rows, length = 2, 64
    for name, architecture in small_architectures().items():
        shape = read_shape(architecture)
        for recompute in (False, True):
            forward, both = counted_flops(architecture, rows, length, recompute=recompute)
            work = Pass(rows * length, rows * length, length, recompute)
            if not recompute:
                yield Row("flops", name, "forward", inference_flops(shape, work, causal=False), forward)
            case = "forward, backward" + (", recomputed" if recompute else "")
            yield Row("flops", name, case, training_flops(shape, work, causal=False), both)


def activations() -> Iterator[Row]:
    """Bytes of one micro-batch of 8 rows of 128 tokens."""
    for name, architecture in (small_architectures() | medium_architectures()).items():
        shape = read_shape(architecture)
        for half in (False, True):
            for recompute in (False, True):
                size = 2 if half else 4
                measured = measured_pass(architecture, ROWS, LENGTH, TRAINED, half=half, recompute=recompute)
                planned = micro_batch_activations(
                    shape, MicroBatch(ROWS * LENGTH, TRAINED, recompute, size, 1)
                )
                case = ("bfloat16" if half else "float32") + (", recomputed" if recompute else "")
                saved = planned.kept - TRAINED * (shape.hidden * size + 8)
                yield Row("activations", name, f"saved, {case}", saved, measured.saved)
                yield Row("activations", name, f"peak, {case}", planned.most, measured.peak)


def state() -> Iterator[Row]:
    """Bytes of rank 0, for all combinations that the learner offers without expert parallelism."""
    model = build_exactness_model("tiny_moe")
    shape = read_shape(model.config.to_dict())
    for world_size in (1, 2):
        found = _spawned(_hold_states, world_size)
        for (stage, half), held in found.items():
            planned = learner_state(shape, Sharding(world_size, stage, 1, 2 if half else 4, False, False))
            case = f"{'bfloat16' if half else 'float32'}, ZeRO {stage}, ranks {world_size}"
            for name in ("weights", "gradients", "optimizer"):
                yield Row(
                    "state",
                    "tiny_moe of learner_exactness",
                    f"{name}, {case}",
                    getattr(planned, name),
                    held[name],
                )


def seconds() -> Iterator[Row]:
    """CPU seconds of an update, after two calibrating ones."""
    dense = smollm2(layers=4) | {"vocab_size": 2000}
    sparse = small_architectures()["qwen3_moe"] | {"hidden_size": 256, "moe_intermediate_size": 128}
    models = {
        "smollm2, 4 layers": dense,
        "qwen3_moe, small": sparse,
        "tiny_moe": small_architectures()["tiny_moe"],
    }
    for name, architecture in models.items():
        work = {
            "calibration 1": (architecture, 8, 64),
            "calibration 2": (architecture, 32, 64),
            "rows twice as many": (architecture, 64, 64),
            "rows twice as long": (architecture, 32, 128),
            "rows four times as long": (architecture, 16, 256),
            "layers twice as many": (
                architecture | {"num_hidden_layers": 2 * architecture["num_hidden_layers"]},
                32,
                64,
            ),
        }
        measured = _spawned(_time_updates, 1, work)
        first, second = measured["calibration 1"], measured["calibration 2"]
        an_operation = (second["seconds"] - first["seconds"]) / (second["flops"] - first["flops"])
        a_parameter = (first["seconds"] - an_operation * first["flops"]) / first["parameters"]
        for case, found in measured.items():
            planned = an_operation * found["flops"] + a_parameter * found["parameters"]
            if not case.startswith("calibration"):
                yield Row("time", name, f"{case} (seconds)", planned, found["seconds"])
        yield Row(
            "time", name, "calibration (GFLOP/s, no prediction)", 1e-9 / an_operation, 1e-9 / an_operation
        )


def _spawned(work: Callable[..., None], world_size: int, *arguments: Any) -> Any:  # noqa: ANN401
    """Run `work(rank, port, world_size, queue, *arguments)` in new
    processes. Returns the result of rank 0.
    """
    queue = mp.get_context("spawn").SimpleQueue()
    start_ranks(world_size, work, world_size, queue, *arguments)
    return queue.get()


def _learner(
    rank: int, world_size: int, port: int, stage: int, model: PreTrainedModel, micro_batch_tokens: int
) -> DeepSpeedLearner:
    sys.stdout = sys.stderr  # DeepSpeed prints its progress
    config = learner_config(Case("tiny_moe", world_size, 1, stage), "adamw")
    config = config.model_copy(update={"micro_batch_tokens": micro_batch_tokens})
    init = DistributedInit(rank, world_size, "gloo", "cpu", tcp_store(rank, world_size, port))
    rule = replace(update_rule(), temperature=1.0)
    return DeepSpeedLearner(init, config, rule, PolicyModel(model, character_tokenizer(64)), 10)


def _hold_states(rank: int, port: int, world_size: int, queue: Any) -> None:  # noqa: ANN401
    found: dict[tuple[int, bool], dict[str, int]] = {}
    for stage in range(4):
        for half in (False, True):
            if half and stage == 0:
                continue
            model = build_exactness_model("tiny_moe")
            if half:
                for parameter in model.parameters():
                    parameter.data = parameter.data.to(torch.bfloat16)
                model.config.dtype = torch.bfloat16
            learner = _learner(rank, world_size, port, stage, model, 60)
            found[stage, half] = _held_before_the_second_step(learner)
            learner.close()
    if rank == 0:
        queue.put(found)


def _held_before_the_second_step(learner: DeepSpeedLearner) -> dict[str, int]:
    """At the end of the last backward pass, when gradients exist and the optimizer has its moments."""
    zero: Any = learner._zero  # pyright: ignore[reportPrivateUsage] - there is no other way to look inside
    step, held = zero.step, dict[str, int]()

    def looking(rate: float) -> float:
        held.update(engine_bytes(zero.engine))
        return step(rate)

    learner.update(0, batch(0))
    zero.step = looking
    learner.update(1, batch(1))
    return held


Work = dict[str, tuple[Architecture, int, int]]
"""For each case: the model, rows, and tokens per row."""


def _time_updates(rank: int, port: int, world_size: int, queue: Any, work: Work) -> None:  # noqa: ANN401
    """The least CPU seconds of an update of each case. Every round covers all cases, so that a
    temporary slowdown affects all of them.
    """
    torch.manual_seed(0)
    learners = {
        case: _learner(rank, world_size, port, 1, build(architecture), 1024)
        for case, (architecture, _, _) in work.items()
    }
    parts = {
        case: _part(rows, length, read_shape(architecture))
        for case, (architecture, rows, length) in work.items()
    }
    best = dict.fromkeys(work, float("inf"))
    for step in range(REPEATS):
        for case, learner in learners.items():
            start = time.process_time()
            learner.update(step, [parts[case]])
            best[case] = min(best[case], time.process_time() - start)
    queue.put(
        {
            case: {
                "seconds": best[case],
                "flops": training_flops(read_shape(architecture), _pass(parts[case])),
                "parameters": total_parameters(read_shape(architecture)).total,
            }
            for case, (architecture, _, _) in work.items()
        }
    )


def _pass(part: BatchPart) -> Pass:
    trained = int(part.rollouts.lengths.sum())
    tokens = trained + int(np.diff(part.rollouts.prompt_offsets).sum()) * GROUP_SIZE
    return Pass(tokens, trained, tokens / len(part.rollouts), recompute=False)


def _part(rows: int, length: int, shape: ModelShape) -> BatchPart:
    """`rows` rollouts of about `length` tokens. Rewards differ in each group, so all are computed."""
    response = length - 4
    vocabulary = shape.vocabulary
    part = random_part(0, rows // GROUP_SIZE, GROUP_SIZE, vocabulary=vocabulary, lengths=(response, response))
    rewards = np.tile([1.0, 0.0, 0.0, 1.0], rows // GROUP_SIZE)
    return replace(part, scores=replace(part.scores, rewards=rewards))


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "parameters": parameters,
    "flops": flops,
    "activations": activations,
    "state": state,
    "time": seconds,
}


def print_table(rows: Sequence[Row]) -> None:
    print("| part | model | case | predicted | measured | error |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        numbers = f"{row.predicted:,.4g} | {row.measured:,.4g} | {row.error:+.1%}"
        print(f"| {row.part} | {row.model} | {row.case} | {numbers} |")
    for part in dict.fromkeys(row.part for row in rows):
        errors = [abs(row.error) for row in rows if row.part == part]
        print(f"\n{part}: {len(errors)} numbers, largest error {max(errors):.1%}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/planner.json")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    arguments = parser.parse_args()
    rows = [row for part in arguments.parts for row in PARTS[part]()]
    documents = [{**asdict(row), "error": row.error} for row in rows]
    if arguments.json:
        print(json.dumps(documents, indent=2))
    else:
        print_table(rows)
    if arguments.write:
        write_result("planner", documents)
    return 0


if __name__ == "__main__":
    sys.exit(main())
