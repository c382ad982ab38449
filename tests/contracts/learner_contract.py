"""The contract of the Learner port, with a single rank."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from orchestrator.errors import CheckpointError, NonFiniteError
from orchestrator.training.learner.port import Learner
from orchestrator.training.records import BatchPart
from orchestrator.training.tensors.buckets import unflatten
from tests.fakes.rollout_batches import random_part

METRICS = {
    "policy/loss",
    "policy/grad_norm",
    "policy/lr",
    "learner/tokens",
    "learner/padding_fraction",
}


def batch(seed: int, version: int = 0) -> list[BatchPart]:
    """Two blocks. Rewards differ within a group, so there is a gradient."""
    parts = [random_part(2 * seed + index, 3, 4, vocabulary=48, version=version) for index in range(2)]
    return [
        dataclasses.replace(part, scores=dataclasses.replace(part.scores, rewards=np.tile([1.0, 0, 0, 1], 3)))
        for part in parts
    ]


def published(learner: Learner) -> dict[str, Tensor]:
    """A copy of the weights that the learner publishes."""
    return {name: tensor.clone() for name, tensor in unflatten(learner.weights())}


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether the weights are bit-equal."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class LearnerContract:
    """Subclass it with a fixture `learner` that creates a new learner for each
    test, always with the same weights.
    """

    def test_a_step_increases_the_version_and_changes_the_weights(self, learner: Learner) -> None:
        before = published(learner)
        report = learner.update(0, batch(0))
        assert report.step == 1
        assert report.metrics.keys() >= METRICS
        assert all(np.isfinite(value) for value in report.metrics.values())
        assert not same_weights(before, published(learner))

    def test_a_loss_that_is_not_finite_is_rejected_without_any_change(self, learner: Learner) -> None:
        before = published(learner)
        with pytest.raises(NonFiniteError) as caught:
            learner.update(2, spoilt(batch(0)))
        assert caught.value.step == 2
        assert same_weights(before, published(learner))

    def test_an_empty_batch_is_refused(self, learner: Learner) -> None:
        with pytest.raises(ValueError, match="got 0 groups"):
            learner.update(0, [])

    def test_a_loaded_learner_continues_exactly(self, learner: Learner, tmp_path: Path) -> None:
        learner.update(0, batch(0))
        learner.save(tmp_path)
        unbroken = learner.update(1, batch(1))
        weights = published(learner)
        learner.update(2, batch(2))

        learner.load(tmp_path)
        resumed = learner.update(1, batch(1))
        assert resumed == unbroken
        assert same_weights(weights, published(learner))

    def test_the_state_of_the_snapshot_is_written(self, learner: Learner, tmp_path: Path) -> None:
        weights: list[dict[str, Tensor]] = []
        for step in range(2):  # the second snapshot uses the memory of the first
            learner.update(step, batch(step))
            learner.prepare_snapshot()
            learner.snapshot()
            weights.append(published(learner))
            learner.update(step, batch(2))
            (tmp_path / str(step)).mkdir()
            learner.write(tmp_path / str(step))
        for step in range(2):
            learner.load(tmp_path / str(step))
            assert same_weights(weights[step], published(learner))

    def test_a_missing_checkpoint_is_rejected(self, learner: Learner, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError):
            learner.load(tmp_path)

    def test_a_directory_that_cannot_be_written_is_a_checkpoint_error(
        self, learner: Learner, tmp_path: Path
    ) -> None:
        with pytest.raises(CheckpointError, match="nowhere"):
            learner.save(tmp_path / "nowhere")
        learner.snapshot()
        with pytest.raises(CheckpointError, match="nowhere"):
            learner.write(tmp_path / "nowhere")

    def test_an_export_is_a_hugging_face_folder(self, learner: Learner, tmp_path: Path) -> None:
        learner.export(tmp_path / "model")
        assert (tmp_path / "model" / "config.json").is_file()


def spoilt(parts: list[BatchPart]) -> list[BatchPart]:
    """A batch whose loss is not finite: rewards for the fake, log-probs for real learners."""
    found: list[BatchPart] = []
    for part in parts:
        logprobs = np.full_like(part.rollouts.logprobs, -np.inf)
        rollouts = dataclasses.replace(part.rollouts, logprobs=logprobs)
        found.append(dataclasses.replace(part, rollouts=rollouts))
    return found
