"""The Learner port: one rank of the group that updates the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from orchestrator.training.records import BatchPart, StepReport
from orchestrator.training.tensors.buckets import Allocate, Bucket, new_bytes
from orchestrator.training.tensors.write_plan import WritePlan


class Learner(Protocol):
    """One rank. All ranks of a group are called with the same arguments in the same order: every method may
    wait for the others.
    """

    def update(self, step: int, parts: Sequence[BatchPart]) -> StepReport:
        """Train on a batch: step `step` (from 0) turns version `step` into version `step` + 1. All ranks
        report the same metrics.

        Raises NonFiniteError, on all ranks, if the loss or the gradient norm is not finite; the update is
        then not applied. Raises ValueError for a batch that is empty or whose blocks don't fit together.
        """
        ...

    def weights(self, allocate: Allocate = new_bytes) -> Iterator[Bucket]:
        """All weights and persistent buffers, in buckets of memory that `allocate` gives: on rank 0. Other
        ranks get none, but must exhaust the iterator too: rank 0's needs their parts.
        """
        ...

    def write_plan(self) -> WritePlan | None:
        """How the ranks write the weights together, into memory that all of them share and without a message:
        this rank's part, for as long as the learner lives. None where tensors have to be put together first;
        the same answer on all ranks.
        """
        ...

    def save(self, directory: Path) -> None:
        """Write this rank's shard into `directory`, synced to disk. Raises CheckpointError if
        the disk refuses.
        """
        ...

    def prepare_snapshot(self) -> None:
        """Get the memory that snapshots need, without waiting for it; after the first update, which makes the
        optimizer's state. Nothing depends on it but the time that the first snapshot takes.
        """
        ...

    def snapshot(self) -> None:
        """Copy this rank's state to host memory: what `write` writes, whatever is trained in between."""
        ...

    def write(self, directory: Path) -> None:
        """Like `save`, with the state of the last `snapshot`. Waits for no other rank, and may be called in
        another thread while any other method but `snapshot` runs. Raises CheckpointError if the disk refuses.
        """
        ...

    def load(self, directory: Path) -> None:
        """Go on as if the run had never stopped. Raises CheckpointError if shards are missing or
        don't fit the model.
        """
        ...

    def export(self, directory: Path) -> None:
        """Rank 0 writes a Hugging Face folder: config, safetensors, tokenizer."""
        ...

    def close(self) -> None:
        """Let go of the model. No method may be called after it."""
        ...
