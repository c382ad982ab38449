"""The `hf` engine against `generate` of transformers, and its log-probs against the learner's."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.gpu_parts.device import limits_of, seconds_of
from benchmarks.gpu_parts.models import Family, Size, random_model, random_prompts, word_tokenizer
from orchestrator.capacity.activations import cache_bytes
from orchestrator.capacity.step_time import touched_weights
from orchestrator.training.learner.deepspeed_learner import layout_for
from orchestrator.training.learner.logprobs import TokenScorer
from orchestrator.training.learner.micro_batch import collate
from orchestrator.training.learner.rows import rollout_rows
from orchestrator.training.prompts.chat_template import end_of_turn
from orchestrator.training.records import BatchPart, RolloutBlock, SamplingParams, ScoreBlock
from orchestrator.training.rollouts.blocks import sample_block
from orchestrator.training.rollouts.engine import Engine
from orchestrator.training.rollouts.engines.hf.sampler import HFSampler
from orchestrator.training.rollouts.stepped import StepEngine

BFLOAT16 = 2


class Sampling:
    """One model with random weights, and both samplers over it. A random model ends a response with
    probability 1 / vocabulary, so nearly all rows have the maximum length.
    """

    def __init__(self, size: Size, family: Family, device: torch.device) -> None:
        self._size, self._device = size, device
        self._shape = size.shape(family)
        self._model = random_model(size, family, device)
        self._tokenizer = word_tokenizer(size)
        self._engine = StepEngine(
            HFSampler(self._model, self._tokenizer, size.context, size.rows, device, record_routes=False)
        )

    def speed(self) -> dict[str, Any]:
        """Tokens per second of both, and the share of the limit: each step of a row reads the weights and the
        cache of all rows once.
        """
        size, shape = self._size, self._shape
        counts: dict[str, list[int]] = {"generate": [], "engine": []}
        samplers: dict[str, Callable[[], int]] = {
            "generate": lambda: with_generate(self._model, self._tokenizer, size, self._device),
            "engine": lambda: len(self._sampled().tokens),
        }
        speeds: dict[str, float] = {}
        for name, sample in samplers.items():
            seconds = seconds_of(
                lambda name=name, sample=sample: counts[name].append(sample()), self._device, size.rounds
            )
            speeds[name] = statistics.mean(counts[name]) / seconds
        limits = limits_of(self._device, size)
        context = size.prompt_tokens + size.new_tokens // 2
        step_bytes = touched_weights(shape, size.rows) * BFLOAT16
        step_bytes += cache_bytes(shape, size.rows, context, BFLOAT16)
        limit = size.rows * limits.bytes_per_second / step_bytes
        return {
            "rows": size.rows,
            "prompt_tokens": size.prompt_tokens,
            "new_tokens": size.new_tokens,
            "generate_tokens_per_s": speeds["generate"],
            "engine_tokens_per_s": speeds["engine"],
            "speedup": speeds["engine"] / speeds["generate"],
            "bandwidth_limit_tokens_per_s": limit,
            "share_of_bandwidth_limit": speeds["engine"] / limit,
            "limits_from": limits.source,
        }

    def logprob_gap(self) -> dict[str, Any]:
        """|log-prob of the engine - log-prob of the learner| of each sampled token, with the same weights."""
        block = self._sampled()
        zeros = np.zeros(len(block), np.uint8)
        scores = ScoreBlock(zeros.astype(float), {}, zeros, ("",) * len(block), zeros.astype(np.bool_))
        rows = rollout_rows([BatchPart(block, scores, tuple(range(len(block.prompts))))])
        scorer = TokenScorer(self._model, temperature=1.0)
        gaps: list[torch.Tensor] = []
        with torch.no_grad():
            for start in range(0, len(rows), self._size.group_size):
                batch = collate(rows[start : start + self._size.group_size], layout_for(self._model))
                batch = batch.to(self._device)
                logprobs, _ = scorer(self._model, batch)
                gaps.append((logprobs - batch.sampled_logprobs).abs().cpu())
        gap = torch.cat(gaps)
        return {
            "dtype": "bfloat16",
            "tokens": gap.numel(),
            "mean": float(gap.mean()),
            "p99": float(gap.kthvalue(max(1, int(0.99 * gap.numel()))).values),
            "max": float(gap.max()),
        }

    def _sampled(self) -> RolloutBlock:
        return sample_with_engine(self._engine, self._size)


def sample_with_engine(engine: Engine, size: Size) -> RolloutBlock:
    """Sample all groups of the workload."""
    sampling = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=size.new_tokens, seed=0)
    return asyncio.run(
        sample_block(engine, range(size.prompts), random_prompts(size), size.group_size, sampling)
    )


def with_generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, size: Size, device: torch.device
) -> int:
    """Sample the same rows with `generate`. Returns the number of sampled tokens, end tokens included."""
    texts = [prompt.text for prompt in random_prompts(size) for _ in range(size.group_size)]
    ids = torch.tensor([tokenizer.encode(text) for text in texts], device=device)
    end = end_of_turn(tokenizer)
    generate: Callable[..., torch.Tensor] = getattr(model, "generate")  # noqa: B009 - a mixin that types don't show
    output = generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=size.new_tokens,
        eos_token_id=end,
        pad_token_id=end,
    )[:, ids.shape[1] :]
    ended = torch.eq(output, end).cumsum(1) > 0
    return int(((~ended).sum(1) + ended.any(1)).sum())
