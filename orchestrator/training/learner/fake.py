"""A fake `Learner` without a model or process group. Its state is a counter, which is published and
saved like real weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from orchestrator.errors import CheckpointError, NonFiniteError
from orchestrator.training.records import BatchPart, StepReport
from orchestrator.training.tensors.buckets import Allocate, Bucket, flatten, new_bytes

_STATE = "fake-learner.json"


class FakeLearner:
    """A single rank. Its only weight, `updates` [1] int64, counts the updates; its metrics
    depend only on the batch.

    A log-prob that is not finite simulates a loss that is not finite.
    """

    def __init__(self, bucket_bytes: int = 1024) -> None:
        self._bucket_bytes = bucket_bytes
        self._updates = self._copied = 0

    def update(self, step: int, parts: Sequence[BatchPart]) -> StepReport:
        """See `Learner.update`."""
        if not any(part.groups for part in parts):
            raise ValueError("batch: got 0 groups, allowed: 1 or more of one size")
        logprobs = np.concatenate([part.rollouts.logprobs for part in parts])
        loss = -float(logprobs.mean())
        if not np.isfinite(loss):
            raise NonFiniteError("policy/loss", loss, step)
        self._updates += 1
        return StepReport(
            step + 1,
            {
                "policy/loss": loss,
                "policy/grad_norm": 1.0,
                "policy/lr": 1e-3,
                "learner/tokens": float(sum(len(part.rollouts.tokens) for part in parts)),
                "learner/padding_fraction": 0.0,
            },
        )

    def weights(self, allocate: Allocate = new_bytes) -> Iterator[Bucket]:
        """See `Learner.weights`."""
        return flatten([("updates", torch.tensor([self._updates]))], self._bucket_bytes, allocate)

    def write_plan(self) -> None:
        """See `Learner.write_plan`. There is no plan, because each version is a new tensor."""

    def save(self, directory: Path) -> None:
        """See `Learner.save`."""
        self.snapshot()
        self.write(directory)

    def prepare_snapshot(self) -> None:
        """See `Learner.prepare_snapshot`. A single number needs no preparation."""

    def snapshot(self) -> None:
        """See `Learner.snapshot`."""
        self._copied = self._updates

    def write(self, directory: Path) -> None:
        """See `Learner.write`."""
        try:
            (directory / _STATE).write_text(json.dumps({"updates": self._copied}))
        except OSError as error:
            raise CheckpointError(f"{directory}: {error}") from error

    def load(self, directory: Path) -> None:
        """See `Learner.load`."""
        try:
            self._updates = json.loads((directory / _STATE).read_text())["updates"]
        except OSError as error:
            raise CheckpointError(f"{directory}: {error}") from error

    def export(self, directory: Path) -> None:
        """See `Learner.export`."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps({"updates": self._updates}))

    def close(self) -> None:
        """See `Learner.close`."""
