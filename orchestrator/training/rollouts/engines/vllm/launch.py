"""Starts vLLM's AsyncLLM for a rollout worker."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import torch

from orchestrator.errors import ConfigError
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.rollouts.config import RolloutConfig
from orchestrator.training.rollouts.engines.vllm.options import VllmOptions
from orchestrator.training.rollouts.engines.vllm.session import VllmSession

CPU_CACHE_BYTES = 1 << 30
CPU_BLOCK_TOKENS = 32


def engine_arguments(
    model: ModelConfig, rollout: RolloutConfig, folder: Path, device: torch.device, seed: int
) -> dict[str, Any]:
    """Keyword arguments of vLLM's `AsyncEngineArgs`.

    The weights are not read (`dummy`): they arrive as the first update. Log-probs are those of the
    distribution that is sampled from. The request alone decides how a rollout is sampled, not the model's
    generation config.
    """
    options = VllmOptions.model_validate(rollout.engine_options)
    on_cpu = device.type == "cpu"
    if on_cpu and options.max_batched_tokens is not None and options.max_batched_tokens < model.context:
        raise ConfigError(
            "rollout.engine_options.max_batched_tokens",
            str(options.max_batched_tokens),
            f"at least model.context ({model.context})",
            "on CPUs the engine reads every prompt in one forward pass",
        )
    arguments: dict[str, Any] = {
        "model": str(folder),
        "load_format": "dummy",
        "dtype": model.dtype,
        "max_model_len": model.context,
        "max_num_seqs": rollout.max_batch_rows,
        "seed": seed,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "enable_prefix_caching": True,
        # vLLM's CPU worker dies if a rollout with a seed has a prompt that is read in parts.
        "enable_chunked_prefill": False if on_cpu else None,
        "enforce_eager": on_cpu if options.eager is None else options.eager,
        "worker_extension_cls": "orchestrator.training.rollouts.engines.vllm.worker.WeightReceiver",
        "tensor_parallel_size": options.tensor_parallel_size,
        "pipeline_parallel_size": options.pipeline_parallel_size,
        "enable_expert_parallel": options.expert_parallel,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "kv_cache_memory_bytes": options.kv_cache_bytes or (CPU_CACHE_BYTES if on_cpu else None),
        "block_size": options.block_size or (CPU_BLOCK_TOKENS if on_cpu else None),
        "disable_log_stats": True,
    }
    if options.accelerators > 1:
        # Inside a placement group vLLM would start Ray actors of its own, outside of the worker's slot.
        arguments["distributed_executor_backend"] = "mp"
    if options.max_batched_tokens is not None:
        arguments["max_num_batched_tokens"] = options.max_batched_tokens
    return arguments


def environment_variables(rollout: RolloutConfig) -> dict[str, str]:
    """What vLLM's processes read from their environment. Variables that are already set win, except for the
    number of threads, which Ray sets as well.
    """
    variables = {
        # Idle OpenMP threads must not spin: the other workers of the machine need the cores.
        "OMP_WAIT_POLICY": "PASSIVE",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    threads = {"OMP_NUM_THREADS": str(rollout.threads)} if rollout.threads else {}
    return {**variables, **os.environ, **threads}


def start_session(
    model: ModelConfig, rollout: RolloutConfig, folder: Path, device: torch.device, seed: int
) -> VllmSession:
    """Start vLLM's processes and wait until they are ready. `folder` has the model's config and tokenizer."""
    os.environ.update(environment_variables(rollout))
    from vllm import SamplingParams  # pyright: ignore
    from vllm.engine.arg_utils import AsyncEngineArgs  # pyright: ignore
    from vllm.sampling_params import RequestOutputKind  # pyright: ignore
    from vllm.v1.engine.async_llm import AsyncLLM  # pyright: ignore

    def parameters(keywords: Mapping[str, Any]) -> Any:  # noqa: ANN401
        return SamplingParams(**keywords, output_kind=RequestOutputKind.FINAL_ONLY)

    arguments = engine_arguments(model, rollout, folder, device, seed)
    with output_to_log():
        llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    return VllmSession(llm, parameters)


@contextlib.contextmanager
def output_to_log() -> Generator[None]:
    """Processes that the body starts print to the log file of this process, if it has one: vLLM reports there
    why one of them did not start.
    """
    streams = [
        handler.stream for handler in logging.getLogger().handlers if type(handler) is logging.StreamHandler
    ]
    files = [
        stream for stream in streams if hasattr(stream, "fileno") and stream not in (sys.stdout, sys.stderr)
    ]
    if not files:
        yield
        return
    kept = [(number, os.dup(number)) for number in (1, 2)]
    try:
        for number, _ in kept:
            os.dup2(files[0].fileno(), number)
        yield
    finally:
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)
