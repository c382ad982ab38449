"""Reference values for the planner, counted and measured on real models on a CPU.

- parameters: a model of transformers on the `meta` device (its tensors have sizes but no memory);
- FLOPs: torch's `FlopCounterMode`, with plain attention and one product per expert, because it does not know
  the fused kernels;
- activations: the tensors that autograd saves (`saved_tensors_hooks`), each storage once, without parameters;
- peak: every storage that is allocated and freed during a forward and a backward pass
  (`TorchDispatchMode` and the lifetime of the storages), so temporaries inside a kernel are not seen;
- state: every tensor that a rank's DeepSpeed engine holds, each storage once.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from orchestrator.config.compose import conf_dir
from orchestrator.training.learner.logprobs import selective_log_softmax
from orchestrator.training.models.fused_attention import pad_values_for_fused_kernels

Architecture = dict[str, Any]

PUBLISHED = ("deepseek_v3", "deepseek_v2_lite", "qwen3_30b_a3b", "mixtral_8x7b", "granite_moe")
_SMALL: Architecture = {
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "vocab_size": 300,
}
_SMALL_LATENT: Architecture = {
    **_SMALL,
    "num_key_value_heads": 4,
    "intermediate_size": 200,
    "moe_intermediate_size": 48,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}


def published(name: str) -> Architecture:
    """`model.architecture` of conf/model/<name>.yaml."""
    return yaml.safe_load((conf_dir() / "model" / f"{name}.yaml").read_text())["architecture"]


def small_architectures() -> dict[str, Architecture]:
    """Every family at a size that computes quickly."""
    tiny = published("tiny_moe")
    experts: Architecture = {**_SMALL, "num_key_value_heads": 2, "num_experts_per_tok": 2}
    return {
        "tiny_moe": tiny | {"model_type": "deepseek_v3", "vocab_size": 103, "max_position_embeddings": 256},
        "deepseek_v3": published("deepseek_v3")
        | _SMALL_LATENT
        | {"q_lora_rank": 48, "n_group": 2, "topk_group": 1},
        "deepseek_v2": published("deepseek_v2_lite") | _SMALL_LATENT,
        "qwen3_moe": published("qwen3_30b_a3b")
        | experts
        | {"head_dim": 32, "num_experts": 8, "moe_intermediate_size": 48},
        "mixtral": published("mixtral_8x7b") | experts | {"intermediate_size": 96, "num_local_experts": 4},
        "granite_moe": published("granite_moe") | experts | {"intermediate_size": 64, "num_local_experts": 8},
        "smollm2": smollm2(layers=3) | {"vocab_size": 1000},
    }


def medium_architectures() -> dict[str, Architecture]:
    """Wider and deeper models, whose weights are large compared with the activations of a micro-batch: a
    dense model with a large vocabulary, and many experts with either attention.
    """
    medium: Architecture = {"hidden_size": 512, "num_hidden_layers": 6, "vocab_size": 4000}
    experts: Architecture = {"num_experts_per_tok": 4, "moe_intermediate_size": 384}
    small = small_architectures()
    return {
        "smollm2, 12 layers": smollm2(layers=12),
        "qwen3_moe, medium": small["qwen3_moe"]
        | medium
        | experts
        | {"num_attention_heads": 8, "head_dim": 64, "num_experts": 32},
        "deepseek_v3, medium": small["deepseek_v3"]
        | medium
        | experts
        | {"intermediate_size": 1536, "n_routed_experts": 32, "kv_lora_rank": 128, "q_lora_rank": 256},
    }


def smollm2(layers: int = 30) -> Architecture:
    """SmolLM2-135M's shape."""
    return {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": layers,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
    }


def build(architecture: Architecture, **implementations: str) -> PreTrainedModel:
    """The model with random float32 weights, for training."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**architecture), **implementations)
    assert isinstance(model, PreTrainedModel)
    return model.train()


def parameter_sizes(architecture: Architecture) -> list[int]:
    """Elements of each parameter of the real model, without using memory."""
    with torch.device("meta"):
        return [parameter.numel() for parameter in build(architecture).parameters()]


def counted_flops(architecture: Architecture, rows: int, length: int, *, recompute: bool) -> tuple[int, int]:
    """FLOPs of the forward pass, and of forward and backward passes, with the head on every position."""
    model = build(architecture, attn_implementation="eager", experts_implementation="eager")
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    tokens = torch.randint(0, architecture["vocab_size"], (rows, length))
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=tokens, use_cache=False).logits
        forward = counter.get_total_flops()
        logits.sum().backward()
    return forward, counter.get_total_flops()


@dataclass(frozen=True, slots=True)
class MeasuredPass:
    """Bytes of one forward and backward pass, excluding parameters and their gradients."""

    saved: int
    """Bytes that autograd holds at the end of the layers, without the head."""
    peak: int


def measured_pass(
    architecture: Architecture, rows: int, length: int, trained: int, *, half: bool, recompute: bool
) -> MeasuredPass:
    """Computed as in the learner: fused attention, grouped experts, the head on `trained` positions."""
    model = build(architecture)
    pad_values_for_fused_kernels(model)
    if half:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    tokens = torch.randint(0, architecture["vocab_size"], (rows, length))
    predictors = torch.arange(trained)
    targets = torch.randint(0, architecture["vocab_size"], (trained,))
    saved: dict[int, tuple[int, Tensor]] = {}
    own = {storage._cdata for storage in _storages(model)}  # pyright: ignore[reportPrivateUsage]

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:  # pyright: ignore[reportPrivateUsage]
            saved[storage._cdata] = (storage.nbytes(), tensor)  # pyright: ignore[reportPrivateUsage]
        return tensor

    def unchanged(tensor: Tensor) -> Tensor:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, unchanged):
        model.base_model(input_ids=tokens, use_cache=False)
    bytes_saved = sum(size for size, _ in saved.values())
    saved.clear()
    with AllocationMeter(model) as meter:
        hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        head: Any = model.get_output_embeddings()
        logits = head(hidden.reshape(-1, hidden.shape[-1]).index_select(0, predictors))
        del hidden
        logprobs, _ = selective_log_softmax(logits, targets, 1.0)
        del logits
        logprobs.sum().backward()
    return MeasuredPass(bytes_saved, meter.peak)


class AllocationMeter(TorchDispatchMode):
    """Bytes of all storages that operations allocate while it is open, and their maximum at one time. The
    model's own storages are not counted.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = {storage._cdata for storage in _storages(model)}  # pyright: ignore[reportPrivateUsage]

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for output in result if isinstance(result, tuple | list) else [result]:
            if isinstance(output, Tensor):
                self._count(output.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()  # pyright: ignore[reportPrivateUsage]
        if size and key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.live -= size
        self._known.discard(key)


def _storages(model: nn.Module) -> list[torch.UntypedStorage]:
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return [tensor.untyped_storage() for tensor in (*parameters, *gradients, *model.buffers())]


def engine_bytes(engine: Any) -> dict[str, int]:
    """Bytes of a DeepSpeed engine by purpose. Each storage counts once, under the first name."""
    gc.collect()
    optimizer = engine.optimizer
    parameters = list(engine.module.parameters())
    inner = getattr(optimizer, "optimizer", optimizer)
    masters = (
        "single_partition_of_fp32_groups",
        "fp32_partitioned_groups_flat",
        "fp32_groups_flat_partition",
    )
    gradients = ("averaged_gradients", "grad_partitions_flat_buffer", "fp32_groups_gradients_flat")
    held = {
        "weights": [parameters, [getattr(parameter, "ds_tensor", None) for parameter in parameters]],
        "optimizer": [
            [getattr(optimizer, name, None) for name in masters],
            [dict(state) for state in inner.state.values()],
        ],
        "gradients": [
            [parameter.grad for parameter in parameters],
            [getattr(optimizer, name, None) for name in gradients],
        ],
    }
    counted: dict[int, tuple[str, int]] = {}
    for name, things in held.items():
        for tensor in _tensors(things):
            storage = tensor.untyped_storage()
            if storage.nbytes():
                counted.setdefault(storage.data_ptr(), (name, storage.nbytes()))
    return {name: sum(size for owner, size in counted.values() if owner == name) for name in held}


def _tensors(thing: Any) -> Iterator[Tensor]:
    """All tensors in nested containers."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, Mapping):
        for value in thing.values():
            yield from _tensors(value)
    elif isinstance(thing, list | tuple):
        for value in thing:
            yield from _tensors(value)
