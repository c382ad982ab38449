"""The Learner port: one rank of the group that updates the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from orchestrator.training.records import BatchPart, StepReport
from orchestrator.training.tensors.buckets import Allocate, Bucket, new_bytes
from orchestrator.training.tensors.write_plan import WritePlan


class Learner(Protocol):
    """One rank. All ranks of a group must be called with the same arguments in the same order, because every
    method may wait for the other ranks.
    """

    def update(self, step: int, parts: Sequence[BatchPart]) -> StepReport:
        """Train on a batch. Step `step` (from 0) turns version `step` into version `step` + 1. All ranks
        report the same metrics.

        Raises NonFiniteError, on all ranks, if the loss or the gradient norm is not finite; the update is
        then not applied. Raises ValueError for a batch that is empty or whose blocks don't fit together.
        """
        ...

    def weights(self, allocate: Allocate = new_bytes) -> Iterator[Bucket]:
        """On rank 0, yield all weights and persistent buffers, in buckets whose memory comes from `allocate`.
        Other ranks yield nothing, but must exhaust the iterator too, because rank 0 needs their shards.
        """
        ...

    def write_plan(self) -> WritePlan | None:
        """This rank's share of writing the weights, if all ranks can write them into shared memory
        without exchanging messages; valid for the lifetime of the learner. None, on all ranks, if tensors
        must be gathered first.
        """
        ...

    def save(self, directory: Path) -> None:
        """Write this rank's shard into `directory` and sync it to disk. Raises
        CheckpointError if that fails.
        """
        ...

    def prepare_snapshot(self) -> None:
        """Pre-allocate snapshot memory in the background, after the first update, which creates the optimizer
        state. Optional: it only makes the first snapshot faster.
        """
        ...

    def snapshot(self) -> None:
        """Copy this rank's state to host memory, from which `write` writes it while training continues."""
        ...

    def write(self, directory: Path) -> None:
        """Like `save`, but with the state of the last `snapshot`. Does not wait for other ranks, and may run
        in another thread while any method except `snapshot` runs. Raises CheckpointError if writing fails.
        """
        ...

    def load(self, directory: Path) -> None:
        """Restore the state, so that training continues as if it had never stopped. Raises CheckpointError if
        shards are missing or do not fit the model.
        """
        ...

    def export(self, directory: Path) -> None:
        """Rank 0 writes a Hugging Face folder: config, safetensors, tokenizer."""
        ...

    def close(self) -> None:
        """Release the model. No method may be called afterwards."""
        ...
