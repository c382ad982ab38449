"""LoRA: small matrices beside frozen linear layers are all that is trained; what leaves is merged.

    W x  becomes  W x + (alpha / rank) B (A x)      A [rank, in] random, B [out, rank] zero at the start

Hu et al., "LoRA: low-rank adaptation of large language models", https://arxiv.org/abs/2106.09685. peft puts
the matrices into the model, without its wrapper: the model keeps its class, and a merged weight its old name.
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
"""As only target: every linear layer except the output head. Routers, and experts that a family keeps in one
tensor a layer, are none.
"""

_ADAPTER = "default"
_BASE, _A, _B = ".base_layer", f".lora_A.{_ADAPTER}.weight", f".lora_B.{_ADAPTER}.weight"


def add_adapters(model: PreTrainedModel, settings: LoraSettings, seed: int) -> None:
    """Put adapters into `model`, in its own precision, and freeze everything else. They change nothing yet.

    `seed` decides the random start; torch's global generator is not touched. Raises ConfigError if no layer
    of the model is a target.
    """
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    layers = _targets(model, settings.target_modules)
    if not layers:
        hint = f"{type(model).__name__} has no such linear layer"
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
    """Inside, `model` is the one that the adapters were put into."""
    layers: Iterable[Any] = _adapted(model).values()
    # Not `enable_adapters`: that also takes the gradient from the parameters, which DeepSpeed holds on to.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def merge_adapters(tensors: Iterable[NamedTensor], model: nn.Module) -> Iterator[NamedTensor]:
    """`tensors` of `model`, in its order, with W + (alpha / rank) B A in the place of W, A and B, under the
    name that W had before; the sum is taken in float32. Without adapters they pass as they are.

    Holds a copy of one base weight at a time. A tensor is valid until the next one is asked for.
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
    """The merged weights of a checkpoint, whose adapters and buffers are `saved`: `model` is the one that the
    run started from, and gets the adapters put in. Raises CheckpointError if they are not this model's.
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
    """By name. Not peft's own search: it takes names of a mixture-of-experts model for its experts."""
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
