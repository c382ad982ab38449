"""The learner on DeepSpeed. One update consists of

    rows        rewards -> advantages, weights of the whole minibatch         the same on all ranks
    plan        rows -> ranks -> micro-batches of a token budget              the same on all ranks
    accumulate  forward, objective, weighted sum, backward                    each rank its own micro-batches
    step        norm, clip, optimizer, router bias                            all ranks together

Each rank computes sums, and one all-reduce per minibatch turns them into metrics. It happens before the last
backward pass, so that a loss that is not finite on any rank is known while the step can still be refused.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from orchestrator.errors import NonFiniteError
from orchestrator.training.learner.activations import checkpoint_activations
from orchestrator.training.learner.adapters import adapters_off, has_adapters, merge_adapters
from orchestrator.training.learner.balance_loss import SequenceBalanceLoss
from orchestrator.training.learner.batching import BatchFormat, plan
from orchestrator.training.learner.config import LearnerConfig
from orchestrator.training.learner.critic import Critic
from orchestrator.training.learner.expert_load import layer_metrics, load_shares
from orchestrator.training.learner.logprobs import TokenScorer
from orchestrator.training.learner.losses.objective import TokenColumns, TokenTerms
from orchestrator.training.learner.micro_batch import MicroBatch, collate
from orchestrator.training.learner.reference import ReferenceModel
from orchestrator.training.learner.routing import RoutingMeter, RoutingSums
from orchestrator.training.learner.rows import (
    AlgorithmSpec,
    TrainingRow,
    computed_rows,
    minibatch_rows,
    rollout_rows,
    trained_on,
)
from orchestrator.training.learner.schedule import learning_rate
from orchestrator.training.learner.sharding import distributed
from orchestrator.training.learner.sharding.gather import FullTensors
from orchestrator.training.learner.sharding.shards import Shard, load_shards, shard_of, write_shard
from orchestrator.training.learner.sharding.snapshot import HostMemory
from orchestrator.training.learner.sharding.zero import OptimizerFactory, ZeroEngine, adamw
from orchestrator.training.learner.step_sums import StepSums
from orchestrator.training.models.fused_attention import pad_values_for_fused_kernels
from orchestrator.training.models.routers import RouteReplay
from orchestrator.training.records import BatchPart, StepReport
from orchestrator.training.tensors.buckets import (
    Allocate,
    Bucket,
    NamedTensor,
    TensorPart,
    flatten,
    joined,
    new_bytes,
)
from orchestrator.training.tensors.write_plan import WritePlan

logger = logging.getLogger(__name__)

_PACKED_ATTENTION = ("flash_attention_2", "flash_attention_3", "flash_attention_4")


@dataclass(frozen=True, slots=True)
class PolicyModel:
    """The trained model: `model` on the CPU, with its adapters if it has some; `tokenizer` for the export;
    and the frozen `reference` model if there is a KL penalty. A model with adapters needs none, because it is
    its own reference with the adapters switched off.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reference: PreTrainedModel | None = None


@dataclass(frozen=True, slots=True)
class _Minibatch:
    """The results of one optimizer update, over all ranks."""

    sums: StepSums
    routing: RoutingSums
    grad_norm: float


@dataclass(frozen=True, slots=True)
class RewardDivergences:
    """The sampled tokens' divergence from the reference model, for a KL penalty in the reward."""

    values: NDArray[np.float64]  # [rollouts], in nats
    tokens: int

    @property
    def mean(self) -> float:
        """Of a token, in nats."""
        return float(self.values.sum()) / max(1, self.tokens)


class DeepSpeedLearner:
    """One rank; see `Learner`. Building it joins the process group and waits for the other ranks."""

    def __init__(
        self,
        init: distributed.DistributedInit,
        config: LearnerConfig,
        rule: AlgorithmSpec,
        trainee: PolicyModel,
        steps: int,
        build_optimizer: OptimizerFactory | None = None,
    ) -> None:
        """`steps` is the length of the run, for the learning-rate schedule. `build_optimizer` replaces the
        config's AdamW.
        """
        self._config, self._rule = config, rule
        self._schedule_steps = config.schedule_steps or steps
        self._device = distributed.join(init, config.threads)
        self._tokenizer = trainee.tokenizer
        for model in (trainee.model, trainee.reference):
            if model is not None:
                pad_values_for_fused_kernels(model)
        if config.activation_checkpointing:
            checkpoint_activations(trainee.model)
        self.layout: BatchFormat = layout_for(trainee.model)
        self._scorer = TokenScorer(trainee.model, rule.temperature)
        self._critic = None if rule.gae is None else Critic(trainee.model, rule.gae, self._device)
        self._reference = (
            None
            if trainee.reference is None
            else ReferenceModel(trainee.reference, rule.temperature, self._device)
        )
        self._adapters = has_adapters(trainee.model)
        self._penalised = rule.objective.kl_coefficient > 0 or rule.reward_kl_coefficient > 0
        self._host_memory, self._copied = HostMemory(), None
        self._zero = ZeroEngine(trainee.model, config, self._device, build_optimizer or adamw(config))
        self._full_tensors = FullTensors(self._zero, config.bucket_bytes)
        self._plan = None if self._adapters else self._full_tensors.plan(together=False)
        self._replay = RouteReplay(trainee.model)
        self._balance = SequenceBalanceLoss(trainee.model, config.sequence_balance_coefficient, self._device)
        self._routing = RoutingMeter(trainee.model, self._device)

    def update(self, step: int, parts: Sequence[BatchPart]) -> StepReport:
        """See `Learner.update`."""
        rate = learning_rate(
            step,
            steps=self._schedule_steps,
            peak=self._config.learning_rate,
            final=self._config.final_learning_rate,
            warmup_steps=self._config.warmup_steps,
            schedule=self._config.schedule,
        )
        divergences = self._reward_divergences(parts)
        penalties = None if divergences is None else self._rule.reward_kl_coefficient * divergences.values
        minibatches = minibatch_rows(parts, self._rule, self._config.minibatches, penalties)
        computed = [computed_rows(rows, self._rule) for rows in minibatches]
        work = [self._micro_batches(rows) for rows in computed]
        if self._critic is not None:
            work = self._critic.credit(work, self._score)
        proximal = self._proximal_logprobs(work)

        totals = StepSums.zeros()
        self._routing.reset()
        routed = self._routing.sums
        norms: list[float] = []
        self._balance.reset()
        updates = list(zip(computed, work, proximal, strict=True)) * self._config.epochs
        for rows, micro_batches, old in updates:
            self._balance.begin(len(rows), dist.get_world_size())
            minibatch = self._minibatch(step, rate, micro_batches, old)
            totals, routed = totals + minibatch.sums, routed + minibatch.routing
            norms.append(minibatch.grad_norm)
        period = self._rule.reference_period
        if self._reference is not None and period is not None and (step + 1) % period == 0:
            self._reference.replace(joined(self._full_tensors.stream()))
        return StepReport(
            step + 1,
            {
                **totals.metrics(len(updates)),
                **({} if divergences is None else {"policy/kl": divergences.mean}),
                "policy/grad_norm": sum(norms) / len(norms),
                "policy/lr": rate,
                **self._routing.metrics(routed),
                **layer_metrics(self._routing.routers, routed.loads, routed.mean_entropies),
                **self._balance.take(),
                **({} if self._critic is None else self._critic.metrics(len(updates))),
            },
            load_shares(self._routing.routers, routed.loads),
            trained_on([row for rows, _, _ in updates for row in rows]),
        )

    def weights(self, allocate: Allocate = new_bytes) -> Iterator[Bucket]:
        """See `Learner.weights`."""
        if self._plan is None:
            return flatten(self._tensors(), self._config.bucket_bytes, allocate)
        return self._plan.fill(allocate) if dist.get_rank() == 0 else iter(())

    def write_plan(self) -> WritePlan | None:
        """See `Learner.write_plan`."""
        return None if self._adapters else self._full_tensors.plan(together=True)

    def save(self, directory: Path) -> None:
        """See `Learner.save`."""
        self._write(self._shard(), directory)

    def prepare_snapshot(self) -> None:
        """See `Learner.prepare_snapshot`."""
        if not self._host_memory.reserved:
            self._host_memory.reserve(self._shard())

    def snapshot(self) -> None:
        """See `Learner.snapshot`."""
        self._copied = self._host_memory.copy(self._shard())

    def write(self, directory: Path) -> None:
        """See `Learner.write`."""
        if self._copied is None:
            raise ValueError("write: got no snapshot, allowed: after `snapshot`")
        self._write(self._copied, directory)

    def load(self, directory: Path) -> None:
        """See `Learner.load`."""
        load_shards(self._zero, directory)
        if self._reference is not None and self._rule.reference_period is not None:
            self._reference.load(directory)

    def export(self, directory: Path) -> None:
        """See `Learner.export`."""
        state = {name: tensor.detach().cpu().clone() for name, tensor in joined(self._tensors())}
        if dist.get_rank() == 0:
            self._zero.module.save_pretrained(directory, state_dict=state)
            self._tokenizer.save_pretrained(directory)

    def close(self) -> None:
        """See `Learner.close`."""
        self._zero.close()

    def _shard(self) -> Shard:
        """This rank's part of a checkpoint. Rank 0 adds the reference model, if it changes during a run."""
        shard = shard_of(self._zero)
        if self._reference is None or self._rule.reference_period is None or dist.get_rank() != 0:
            return shard
        return replace(shard, tensors={**shard.tensors, **self._reference.saved_tensors})

    @staticmethod
    def _write(shard: Shard, directory: Path) -> None:
        path = write_shard(shard, directory)
        logger.info("wrote %s (%d bytes)", path, path.stat().st_size)

    def _tensors(self) -> Iterator[NamedTensor | TensorPart]:
        """The weights with adapters merged, under their names in a model without adapters."""
        tensors = self._full_tensors.stream()
        return merge_adapters(joined(tensors), self._zero.module) if self._adapters else tensors

    def _micro_batches(self, rows: Sequence[TrainingRow]) -> list[MicroBatch]:
        """This rank's micro-batches. All ranks have the same number."""
        return [self._collate(rows, indices) for indices in self._planned(rows)]

    def _planned(self, rows: Sequence[TrainingRow]) -> list[list[int]]:
        """Row indices of each of this rank's micro-batches."""
        world_size, budget = dist.get_world_size(), self._config.micro_batch_tokens
        return plan([len(row) for row in rows], world_size, budget, self.layout)[dist.get_rank()]

    def _collate(self, rows: Sequence[TrainingRow], indices: Sequence[int]) -> MicroBatch:
        return collate([rows[index] for index in indices], self.layout).to(self._device)

    @torch.no_grad()
    def _reward_divergences(self, parts: Sequence[BatchPart]) -> RewardDivergences | None:
        """For a KL penalty that is subtracted from the reward: the sum of log mu - log q over the trained
        tokens of each rollout, with mu the rollout engine's probability and q the reference's. Each rank
        scores its share of the rollouts; all ranks return the same numbers.
        """
        if self._rule.reward_kl_coefficient == 0:
            return None
        rows = rollout_rows(parts)
        sums = torch.zeros(len(rows), dtype=torch.float64, device=self._device)
        for indices in self._planned(rows):
            batch = self._collate(rows, indices)
            reference = self._reference_logprobs(batch)
            assert reference is not None, "a KL penalty in the reward needs a reference model"
            owners = torch.tensor(indices, dtype=torch.int64, device=self._device)[batch.token_rows.index]
            sums.index_add_(0, owners, (batch.sampled_logprobs - reference).double())
        dist.all_reduce(sums)
        return RewardDivergences(sums.cpu().numpy(), sum(row.trained_tokens for row in rows))

    def _proximal_logprobs(self, work: Sequence[Sequence[MicroBatch]]) -> list[list[Tensor | None]]:
        """The learner's log-probs before the first update, if there are several updates and
        the objective needs them.
        """
        if len(work) * self._config.epochs == 1 or self._rule.objective.correction is None:
            return [[None for _ in micro_batches] for micro_batches in work]
        with torch.no_grad():
            return [[self._score(batch)[0] for batch in micro_batches] for micro_batches in work]

    def _minibatch(
        self, step: int, rate: float, micro_batches: Sequence[MicroBatch], proximal: Sequence[Tensor | None]
    ) -> _Minibatch:
        """One optimizer update."""
        self._routing.reset()
        sums = StepSums.zeros(self._device)
        last = len(micro_batches) - 1
        for index, (batch, old) in enumerate(zip(micro_batches, proximal, strict=True)):
            columns, terms, entropies = self._forward(batch, old)
            loss = torch.dot(terms.loss, batch.weights)
            if self._critic is not None:
                loss = loss + self._critic.loss(batch)
            sums = sums + StepSums.of(batch, columns, terms, entropies)
            if index == last:
                sums = sums.all_reduce()
                if not math.isfinite(sums.loss):
                    # A gradient that is not finite makes DeepSpeed skip the step and clear the accumulated
                    # gradients at every stage.
                    loss = loss * math.nan
            self._zero.backward(loss, last=index == last)
        routing = self._routing.sums.all_reduce() if self._routing.routers else self._routing.sums
        norm = self._zero.step(rate)
        self._refuse_non_finite(step, sums.loss, norm)
        if self._config.router_bias_update_speed > 0:
            self._routing.update_biases(routing, self._config.router_bias_update_speed)
        return _Minibatch(sums.cpu(), routing, norm)

    def _forward(self, batch: MicroBatch, proximal: Tensor | None) -> tuple[TokenColumns, TokenTerms, Tensor]:
        reference = self._reference_logprobs(batch) if self._rule.reward_kl_coefficient == 0 else None
        with self._routing.counting(batch.real), self._balance.counting():
            logprobs, entropies = self._score(batch)
        columns = TokenColumns(
            logprobs=logprobs,
            sampled_logprobs=batch.sampled_logprobs,
            advantages=batch.advantages,
            proximal_logprobs=proximal,
            reference_logprobs=reference,
            rows=batch.token_rows,
            entropies=entropies,
        )
        return columns, self._rule.objective(columns), entropies

    def _score(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        # They stay set for the backward pass, which may recompute the forward pass.
        self._replay.use(batch.routes)
        self._balance.use(batch)
        return self._scorer(self._zero.forward, batch)

    @torch.no_grad()
    def _reference_logprobs(self, batch: MicroBatch) -> Tensor | None:
        if self._reference is not None:
            return self._reference.logprobs(batch)
        if not self._adapters or not self._penalised:
            return None
        self._replay.use(None)  # a separate reference model chooses its own experts
        with adapters_off(self._zero.module):
            return self._scorer(self._zero.forward, batch)[0]

    @staticmethod
    def _refuse_non_finite(step: int, loss: float, norm: float) -> None:
        if not math.isfinite(loss):
            raise NonFiniteError("policy/loss", loss, step)
        if not math.isfinite(norm):
            raise NonFiniteError("policy/grad_norm", norm, step)


def layout_for(model: PreTrainedModel) -> BatchFormat:
    """Packed if the model's attention separates packed rows at no cost, otherwise padded."""
    attention = model.config._attn_implementation  # pyright: ignore[reportPrivateUsage] - there is no public name
    return "packed" if attention in _PACKED_ATTENTION else "padded"
