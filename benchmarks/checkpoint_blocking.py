"""Measures how long training is blocked while a checkpoint is written.

    python benchmarks/checkpoint_blocking.py [--json] [--layers 16] [--saves 4] [--keep]

One rank trains without a pause and saves through `Checkpointer`, as a run does. The model is a random Llama
with 7.1 million parameters per layer; a checkpoint has 12 bytes per parameter: float32 weights and AdamW's
two moments. Measured alternately, in one run:

- waited_for: seconds of a save that the step waits for (`checkpoint.asynchronous=false`);
- blocked: seconds of an asynchronous save until the next update may begin; its memory is allocated after the
  first update, as in a run;
- written: seconds from the start of that save until its manifest is on disk, while updates continue;
- share: blocked / written, and blocked / waited_for; the target is 10 % of each;
- update_beside: an update while a checkpoint is written, divided by an update without.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from machine import describe, write_result
from transformers import LlamaConfig, LlamaForCausalLM

from orchestrator.training.checkpoints.checkpointer import Checkpointer, LoopState
from orchestrator.training.learner.deepspeed_learner import DeepSpeedLearner, PolicyModel
from orchestrator.training.learner.sharding.distributed import DistributedInit
from orchestrator.training.models.characters import character_tokenizer
from orchestrator.training.stages import Savable, Span
from tests.support.exactness_setting import Case, batch, learner_config, update_rule
from tests.support.moe_families import VOCABULARY

TARGET = 0.10


@dataclass(frozen=True, slots=True)
class Row:
    """One pair of saves: the synchronous and the asynchronous one, in seconds."""

    save: str
    gigabytes: float
    waited_for: float
    blocked: float
    written: float
    share_of_written: float
    share_of_waited_for: float
    update_beside: float


class InProcess(Savable):
    """The learner stage of one rank in this process. Updates run in one thread, a write in another."""

    def __init__(self, learner: DeepSpeedLearner) -> None:
        self.learner = learner

    async def save(self, directory: Path, step: int) -> tuple[Span, ...]:
        await asyncio.to_thread(self.learner.save, directory)
        return ()

    async def snapshot(self, step: int) -> tuple[Span, ...]:
        await asyncio.to_thread(self.learner.snapshot)
        return ()

    async def write(self, directory: Path) -> None:
        await asyncio.to_thread(self.learner.write, directory)

    async def load(self, directory: Path) -> None:
        await asyncio.to_thread(self.learner.load, directory)


def build_learner(layers: int) -> DeepSpeedLearner:
    """Build one rank with ZeRO 1 and AdamW."""
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=12,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    trainee = PolicyModel(LlamaForCausalLM(shape), character_tokenizer(64))
    init = DistributedInit(0, 1, "gloo", "cpu")
    return DeepSpeedLearner(
        init, learner_config(Case("llama", 1, 1, 1), "adamw"), update_rule(), trainee, 1000
    )


async def measure(layers: int, saves: int, directory: Path) -> list[Row]:
    """Measure `saves` pairs."""
    learner = build_learner(layers)
    stage, part = InProcess(learner), batch(0)[1:]
    written: dict[int, float] = {}
    waiting = Checkpointer(directory / "waiting", keep=1)
    behind = Checkpointer(
        directory / "behind",
        keep=1,
        asynchronous=True,
        on_written=lambda step: written.__setitem__(step, time.perf_counter()),
    )

    async def update() -> float:
        begin = time.perf_counter()
        await asyncio.to_thread(learner.update, 1, part)
        return time.perf_counter() - begin

    rows: list[Row] = []
    await update()
    learner.prepare_snapshot()
    for step in range(1, saves + 1):
        alone = statistics.median([await update() for _ in range(3)])
        state = LoopState(step, 0, (), {})
        begin = time.perf_counter()
        await waiting.save(stage, state)
        waited_for = time.perf_counter() - begin

        begin = time.perf_counter()
        await behind.save(stage, state)
        blocked, beside = time.perf_counter() - begin, list[float]()
        while step not in written:
            beside.append(await update())
        await behind.wait_for_pending()
        took = written[step] - begin
        size = sum(path.stat().st_size for path in (directory / "behind").rglob("*") if path.is_file())
        rows.append(
            Row(
                save="first" if step == 1 else f"later {step - 1}",
                gigabytes=round(size / 1e9, 2),
                waited_for=round(waited_for, 3),
                blocked=round(blocked, 3),
                written=round(took, 3),
                share_of_written=round(blocked / took, 4),
                share_of_waited_for=round(blocked / waited_for, 4),
                update_beside=round(statistics.mean(beside) / alone, 2),
            )
        )
    learner.close()
    return rows


def print_table(rows: list[Row]) -> None:
    """Print one line per save."""
    print("save        GB  waited for  blocked  written  share of written  of waited for  update beside")
    for row in rows:
        seconds = f"{row.waited_for:>10.2f}s {row.blocked:>7.3f}s {row.written:>7.2f}s"
        shares = f"{row.share_of_written:>16.1%} {row.share_of_waited_for:>14.1%} {row.update_beside:>13.2f}x"
        print(f"{row.save:<8} {row.gigabytes:>5.2f} {seconds} {shares}")


def main() -> int:
    """Print the table. The exit code is 1 if the median share exceeds the target."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--saves", type=int, default=4)
    parser.add_argument(
        "--keep", action="store_true", help="write benchmarks/results/checkpoint_blocking.json"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        rows = asyncio.run(measure(arguments.layers, arguments.saves, Path(directory)))
    if arguments.json:
        print(json.dumps({"machine": describe(), "rows": [asdict(row) for row in rows]}, indent=2))
    else:
        print_table(rows)
    if arguments.keep:
        write_result("checkpoint_blocking", [asdict(row) for row in rows])
    return int(statistics.median(max(row.share_of_written, row.share_of_waited_for) for row in rows) > TARGET)


if __name__ == "__main__":
    sys.exit(main())
