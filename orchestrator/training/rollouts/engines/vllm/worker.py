"""Methods that the engine adds to vLLM's worker processes (`worker_extension_cls`). Runs inside vLLM only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from orchestrator.training.rollouts.engines.vllm.weights import read_staged
from orchestrator.training.tensors.buckets import NamedTensor

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class WeightReceiver:
    """Mixed into vLLM's worker class."""

    vllm_config: Any
    model_config: Any
    model_runner: Any

    @torch.no_grad()
    def load_staged_weights(self, path: str, size: int, tensors: Sequence[Any]) -> int:
        """Replace all weights by those that `StagedWeights` holds at `path`; the engine must be paused.
        Returns the number of loaded parameters. Raises ValueError if one of them is missing.
        """
        from vllm.config import set_current_vllm_config  # pyright: ignore
        from vllm.model_executor.model_loader.reload import (  # pyright: ignore
            finalize_layerwise_reload,
            initialize_layerwise_reload,
        )

        model = self.model_runner.get_model()
        wanted = {name for name, _ in model.named_parameters()}
        tied = bool(getattr(self.model_config.hf_text_config, "tie_word_embeddings", False))
        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(model)
            loaded = set(model.load_weights(checkpoint_tensors(read_staged(path, size, tensors), tied)))
            finalize_layerwise_reload(model, self.model_config)
            if tied:
                # A tied head has no weight of its own to load, so it would keep a packed copy of the old one.
                model.lm_head.quant_method.process_weights_after_loading(model.lm_head)
        missing = sorted(wanted - loaded)
        if missing:
            raise ValueError(f"the weights lack {len(missing)} parameters, among them {missing[0]!r}")
        return len(loaded)


def checkpoint_tensors(tensors: Iterable[NamedTensor], tied: bool) -> Iterator[NamedTensor]:
    """The tensors as in a checkpoint, with a tied embedding under its own name only. Each is a copy, because
    vLLM collects the tensors of a layer before it loads them.
    """
    seen = False
    for name, tensor in tensors:
        if tied and name in (EMBEDDING, HEAD):
            if seen:
                continue
            name, seen = EMBEDDING, True
        yield name, tensor.clone()
