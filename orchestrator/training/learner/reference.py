"""The frozen reference model of a KL penalty, which may be replaced by the learner's every few steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from orchestrator.errors import CheckpointError
from orchestrator.training.learner.logprobs import TokenScorer
from orchestrator.training.learner.micro_batch import MicroBatch
from orchestrator.training.learner.sharding.shard_files import ShardFiles
from orchestrator.training.tensors.buckets import NamedTensor

_PREFIX = "reference/"


class ReferenceModel:
    """A whole copy of the model on every rank, without gradients."""

    def __init__(self, model: PreTrainedModel, temperature: float, device: torch.device) -> None:
        self._model: PreTrainedModel = model.eval().requires_grad_(False).to(device)  # pyright: ignore[reportArgumentType]
        self._scorer = TokenScorer(self._model, temperature)
        kept = model.state_dict(keep_vars=True).keys()
        buffers = ((name, buffer) for name, buffer in model.named_buffers() if name in kept)
        self._tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(buffers)}

    @torch.no_grad()
    def logprobs(self, batch: MicroBatch) -> Tensor:
        """The reference's log-probs of the batch's trained tokens, [T] float32."""
        return self._scorer(self._model, batch)[0]

    @torch.no_grad()
    def replace(self, tensors: Iterable[NamedTensor]) -> None:
        """Become the model of `tensors`: all of them on rank 0, none on other ranks, which must exhaust
        them. Collective.
        """
        for name, tensor in tensors:
            self._tensors[name].copy_(tensor)
        for tensor in self._tensors.values():
            dist.broadcast(tensor.data, src=0)

    @property
    def saved_tensors(self) -> Mapping[str, Tensor]:
        """What a checkpoint keeps of it, by key. Tied parameters come once."""
        return {_PREFIX + name: tensor.data for name, tensor in self._tensors.items()}

    @torch.no_grad()
    def load(self, directory: Path) -> None:
        """Become the reference model of a checkpoint. Raises CheckpointError if the checkpoint has none, or
        if its tensors have other shapes.
        """
        with ExitStack() as stack:
            try:
                shards = ShardFiles(directory, stack)
                for key, tensor in self.saved_tensors.items():
                    saved = shards.tensor(key)
                    if saved.shape != tensor.shape:
                        shapes = f"shape {tuple(saved.shape)}, the model {tuple(tensor.shape)}"
                        raise CheckpointError(f"{directory}: {key} has {shapes}")
                    tensor.copy_(saved)
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{directory}: {error}") from error
