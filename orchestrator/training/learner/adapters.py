"""LoRA: only small matrices beside frozen linear layers are trained; published and
exported weights are merged.

    W x  becomes  W x + (alpha / rank) B (A x)      A [rank, in] random, B [out, rank] zero at the start

Hu et al., "LoRA: low-rank adaptation of large language models", https://arxiv.org/abs/2106.09685. peft
adds the matrices to the model, but without peft's wrapper: the model keeps its class, and merged
weights their old names.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from orchestrator.errors import CheckpointError, ConfigError
from orchestrator.training.learner.config import LoraSettings
from orchestrator.training.tensors.buckets import NamedTensor

ALL_LINEAR = "all-linear"
"""As the only target: every linear layer except the output head. Routers, and experts whose family stores
them as one tensor per layer, are not linear layers.
"""

_ADAPTER = "default"
_BASE, _A, _B = ".base_layer", f".lora_A.{_ADAPTER}.weight", f".lora_B.{_ADAPTER}.weight"


def add_adapters(model: PreTrainedModel, settings: LoraSettings, seed: int) -> None:
    """Add adapters to `model`, in its own precision, and freeze everything else. The
    outputs do not change yet.

    `seed` determines the random initialisation; torch's global generator is not used. Raises ConfigError if
    no layer of the model is a target.
    """
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    layers = _targets(model, settings.target_modules)
    if not layers:
        hint = f"{type(model).__name__} has no linear layer of that name"
        allowed = f"names of linear layers, or {ALL_LINEAR}"
        raise ConfigError("learner.lora.target_modules", ", ".join(settings.target_modules), allowed, hint)
    model.requires_grad_(False)
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, lora_dropout=0.0, bias="none")  # pyright: ignore[reportArgumentType] - alpha may be a fraction
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layer in layers.items():
            owner, _, leaf = name.rpartition(".")
            adapted = Linear(layer, _ADAPTER, config, r=settings.rank, lora_alpha=settings.alpha)  # pyright: ignore[reportArgumentType]
            setattr(model.get_submodule(owner), leaf, adapted.to(model.dtype).train(model.training))


def has_adapters(model: nn.Module) -> bool:
    """Whether `add_adapters` was called."""
    return bool(_adapted(model))


@contextmanager
def adapters_off(model: nn.Module) -> Generator[None]:
    """Disable the adapters inside the context, so that `model` computes what it
    did before they were added.
    """
    layers: Iterable[Any] = _adapted(model).values()
    # Not peft's `enable_adapters`: it also switches off `requires_grad`, which DeepSpeed relies on.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def merge_adapters(tensors: Iterable[NamedTensor], model: nn.Module) -> Iterator[NamedTensor]:
    """Replace W, A and B among the `tensors` of `model`, which are in its order, by W + (alpha /
    rank) B A under the original name of W. The sum is computed in float32. Without adapters, tensors
    pass through unchanged.

    Holds a copy of one base weight at a time. Each tensor is valid until the next one is requested.
    """
    scaling: dict[str, float] = {name: layer.scaling[_ADAPTER] for name, layer in _adapted(model).items()}
    base: Tensor | None = None
    down: Tensor | None = None
    for name, tensor in tensors:
        if name.endswith(f"{_BASE}.weight"):
            base = tensor.detach().clone()
        elif name.endswith(_A):
            down = tensor.detach().float().clone()
        elif name.endswith(_B):
            assert base is not None and down is not None, f"{name} came before its base weight"
            layer = name.removesuffix(_B)
            change = torch.matmul(tensor.detach().float(), down).mul_(scaling[layer])
            yield f"{layer}.weight", change.add_(base).to(base.dtype)
            base = down = None
        else:
            yield name.replace(_BASE, ""), tensor


@torch.no_grad()
def merged_from(
    model: PreTrainedModel, settings: LoraSettings, seed: int, saved: Iterable[NamedTensor]
) -> Iterator[NamedTensor]:
    """The merged weights of a checkpoint with the adapters and buffers `saved`. `model` is the
    model that the run started from; the adapters are added to it. Raises CheckpointError if they do
    not belong to this model.
    """
    add_adapters(model, settings, seed)
    state = model.state_dict()
    missing = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, tensor in saved:
        if name not in state or state[name].shape != tensor.shape:
            raise CheckpointError(f"the model has no weight {name!r} of shape {tuple(tensor.shape)}")
        state[name].copy_(tensor)
        missing.discard(name)
    if missing:
        raise CheckpointError(f"the checkpoint lacks {len(missing)} adapters, among them {min(missing)!r}")
    kept = state.keys()
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name in kept]
    yield from merge_adapters([*model.named_parameters(), *buffers], model)


def _targets(model: PreTrainedModel, names: Sequence[str]) -> dict[str, nn.Module]:
    """The target layers by name. peft's own search is not used, because it mistakes layers of
    mixture-of-experts models for experts.
    """
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and (list(names) == [ALL_LINEAR] or name.rpartition(".")[2] in names)
    }


def _adapted(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
