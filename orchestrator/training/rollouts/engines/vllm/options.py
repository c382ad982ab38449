"""`rollout.engine_options` of the engine `vllm`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class VllmOptions(BaseModel):
    """Options of vLLM that decide how fast it is and how much memory it takes, but not what it samples."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs over which each layer is split."""
    pipeline_parallel_size: int = Field(default=1, ge=1)
    """Groups of GPUs over which the layers are distributed."""
    expert_parallel: bool = False
    """Distribute whole experts over the GPUs of a layer instead of splitting each of them."""
    gpu_memory_utilization: float = Field(default=0.4, gt=0, le=1)
    """Share of each GPU's memory for weights, activations and KV cache. The default leaves room for a learner
    rank on the same GPU.
    """
    kv_cache_bytes: int | None = Field(default=None, ge=1)
    """Size of the KV cache; null: on GPUs what `gpu_memory_utilization` leaves, on CPUs 1 GiB."""
    block_size: int | None = Field(default=None, ge=1)
    """Tokens per block of the KV cache. The rollouts of a prompt share its full blocks. null: on CPUs 32, on
    GPUs vLLM's default.
    """
    max_batched_tokens: int | None = Field(default=None, ge=1)
    """The most tokens in one forward pass; null: vLLM's default. On CPUs at least `model.context`."""
    eager: bool | None = None
    """Run the model without compiling it or capturing graphs; null: only on CPUs."""

    @property
    def accelerators(self) -> int:
        """How many accelerators one engine uses."""
        return self.tensor_parallel_size * self.pipeline_parallel_size
