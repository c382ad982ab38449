"""Exports a trained model as a folder that plain transformers loads."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from orchestrator.errors import CheckpointError
from orchestrator.training.models.build import build_model, build_tokenizer
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.models.folder import save


def write_model(
    config: ModelConfig,
    seed: int,
    tensors: Iterable[tuple[str, Tensor]],
    folder: Path,
    stops: Collection[int] = (),
) -> int:
    """Write config, generation config, safetensors and tokenizer of the model of `config` with the weights
    `tensors` into `folder`, in the config's dtype. Returns the number of parameters.

    `stops` are the tokens that ended responses in training; `generate` of transformers will also stop at
    them. Raises CheckpointError if the weights do not belong to this model, and ConfigError if the initial
    model of the run no longer exists (its config and tokenizer are needed).
    """
    model = build_model(config, seed)
    replace_weights(model, tensors)
    if len(stops) > 1:
        model.generation_config.eos_token_id = sorted(stops)
    save(model, build_tokenizer(config), folder)
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def replace_weights(model: PreTrainedModel, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Copy parameters and persistent buffers in place, by name. A tied weight may have either of its names.

    Raises CheckpointError for an unknown name, a wrong shape, or a missing weight.
    """
    state = model.state_dict()
    loaded: set[int] = set()
    for name, tensor in tensors:
        if name not in state or state[name].shape != tensor.shape:
            raise CheckpointError(f"the model has no weight {name!r} of shape {tuple(tensor.shape)}")
        state[name].copy_(tensor)
        loaded.add(state[name].data_ptr())
    missing = [name for name, tensor in state.items() if tensor.data_ptr() not in loaded]
    if missing:
        raise CheckpointError(f"the checkpoint lacks {len(missing)} weights, among them {missing[0]!r}")
