"""The reference of learner_exactness.py: the update as written in the papers.

One process, one rollout at a time, no padding, no packing, no DeepSpeed, `log_softmax` over all logits. It
uses nothing of the learner: advantages, token weights, losses, KL penalties, importance weights, the balance
loss and the update of the selection bias are written out here from their papers, often element by element,
for clarity rather than speed.

- GRPO's advantage: arXiv 2402.03300, section 4.1.2. Token weights: eq. 3 there (`sequence`), arXiv 2503.14476
  (`token`, over the batch), arXiv 2503.20783 (`constant`).
- PPO's clip: arXiv 1707.06347, eq. 7; dual clip: arXiv 1912.09729, eq. 5.
- CISPO: arXiv 2506.13585, eq. 4 and 5. GSPO: arXiv 2507.18071, eq. 5 and 7. GMPO: arXiv 2507.20673.
- KL estimators: http://joschu.net/blog/kl-approx.html. k1 is differentiated as "KL in the reward".
- Truncated importance sampling: https://fengyao.notion.site/off-policy-rl; masked: arXiv 2510.18855; the
  decoupled objective, without truncation: arXiv 2505.24298, eq. 5.
- Overlong filtering: arXiv 2503.14476, section 3.4. KL in the reward: arXiv 2402.14740, eq. 3.
- Generalised advantage estimation: arXiv 1506.02438, eq. 16. Value loss: arXiv 1707.06347, eq. 9; its clip:
  arXiv 2005.12729, section 3.
- Sequence-wise balance loss and selection bias: arXiv 2412.19437, eq. 16 to 20.
- Routing replay: arXiv 2510.11370.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from orchestrator.training.records import BatchPart, Finish
from tests.support.exactness_setting import (
    BALANCE,
    CLOSEST,
    MAX_NEW_TOKENS,
    STEPS,
    TEMPERATURE,
    Case,
    Objective,
    OptimizerName,
    Training,
    batch,
    learner_config,
    model_of,
    reference_of,
)


@dataclass(frozen=True, slots=True)
class Credit:
    """What a value head says about each response token at the beginning of a step."""

    values: list[float]
    returns: list[float]
    advantages: list[float]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One rollout. `trained` marks the response tokens that the loss counts."""

    prompt: list[int]
    response: list[int]
    trained: list[bool]
    sampled_logprobs: list[float]
    advantage: float
    """Of all tokens; with a value head the reward."""
    routes: NDArray[np.int16] | None
    credit: Credit | None = None

    def advantage_of(self, token: int) -> float:
        """The advantage of a response token."""
        return self.advantage if self.credit is None else self.credit.advantages[token]

    @property
    def length(self) -> int:
        """|o_i| in the papers: the number of tokens that the loss counts."""
        return sum(self.trained)


def train_plainly(
    name: str, optimizer_name: OptimizerName, objective: str = "token", steps: int = STEPS
) -> Training:
    """Train the model `name` for `steps` steps in this process."""
    model = model_of(name)
    process = _PlainProcess(model, Case(name, 1, 1, 0, objective), optimizer_name)
    losses, norms = zip(*(process.step(step) for step in range(steps)), strict=True)
    state = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
    return Training(list(losses), list(norms), state)


class _PlainProcess:
    def __init__(self, model: PreTrainedModel, case: Case, optimizer: OptimizerName) -> None:
        self._model, self._objective = model, case.minimised
        self._config = learner_config(case, optimizer)
        self._reference = reference_of(case.model) if case.minimised.kl is not None else None
        hidden = model.config.get_text_config().hidden_size
        self._value_weight = nn.Parameter(torch.zeros(1, hidden))
        self._value_bias = nn.Parameter(torch.zeros(1))
        self._hidden = torch.empty(0)
        output_head = model.get_output_embeddings()
        assert output_head is not None
        output_head.register_forward_pre_hook(self._keep_hidden)
        self._optimizer = self._build_optimizer(optimizer)
        self._routers = _Routers(model)

    def step(self, step: int) -> tuple[float, float]:
        """Train on one batch. Returns the mean loss and gradient norm of its minibatches."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.learning_rate * min(1.0, (step + 1) / self._config.warmup_steps)
        groups = groups_of(batch(step, self._objective), self._objective, self._reward_penalty)
        size = len(groups) // self._objective.minibatches
        if self._objective.gae is not None:
            groups = self._credited(groups)
        minibatches = [
            [rollout for group in groups[start : start + size] for rollout in group]
            for start in range(0, len(groups), size)
        ]
        with torch.no_grad():
            # The policy at the beginning of the step, before a minibatch moves it.
            before = [
                [self._logprobs(self._model, rollout) for rollout in rollouts] for rollouts in minibatches
            ]
        updates = [
            self._update(rollouts, old)
            for _ in range(self._objective.epochs)
            for rollouts, old in zip(minibatches, before, strict=True)
        ]
        period = self._objective.reference_period
        if self._reference is not None and period is not None and (step + 1) % period == 0:
            self._reference.load_state_dict(self._model.state_dict())
        losses, norms = zip(*updates, strict=True)
        return sum(losses) / len(losses), sum(norms) / len(norms)

    def _update(self, rollouts: Sequence[Rollout], before: Sequence[Tensor]) -> tuple[float, float]:
        weights = token_weights(self._objective, [rollout.length for rollout in rollouts])
        penalised = not self._objective.drops_zero_advantages
        # Without a penalty or a bonus a rollout of zero advantage has no gradient. The learner leaves it out,
        # and the balance loss, a mean over the computed rollouts, does not count it either.
        computed = [r.length > 0 and (penalised or r.advantage != 0) for r in rollouts]
        loss = 0.0
        self._routers.forget_loads()
        for rollout, old, weight, counts in zip(rollouts, before, weights, computed, strict=True):
            if not counts:
                continue
            terms = self._token_losses(rollout, old)
            # In float64, as the learner adds up: float32 loses 1e-7 where losses are large and nearly cancel.
            total = (terms.double() * torch.tensor(rollout.trained)).sum() * weight
            if rollout.credit is not None:
                errors = value_losses(self._objective, self._values(rollout), rollout.credit)
                error = (errors.double() * torch.tensor(rollout.trained)).sum() * weight
                (self._objective.value_coefficient * error).backward(retain_graph=True)
            balance = sum(self._routers.balance_losses(), torch.zeros(()))
            (total + BALANCE * balance / sum(computed)).backward()
            self._routers.add_loads()
            loss += float(total.detach())
        parameters = self._parameters()
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self._config.max_grad_norm))
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._routers.move_biases(self._config.router_bias_update_speed)
        return loss, norm

    def _token_losses(self, rollout: Rollout, before: Tensor) -> Tensor:
        """The loss of each response token, [R]."""
        objective = self._objective
        distributions = self._distributions(self._model, rollout)
        logprobs = chosen(distributions, rollout)
        sampled = torch.tensor(rollout.sampled_logprobs)
        old = sampled if objective.truncation is None else before
        total = policy_losses(objective, rollout, logprobs, old)
        if objective.entropy_coefficient > 0:
            entropies = torch.stack([-(row.exp() * row).sum() for row in distributions])
            total = total - objective.entropy_coefficient * entropies
        if self._reference is not None and not objective.kl_in_reward:
            with torch.no_grad():
                reference = self._logprobs(self._reference, rollout)
            total = total + objective.kl_coefficient * kl_penalty(objective, logprobs, reference)
        if objective.truncation is not None:
            total = total * importance_weights(objective, rollout, before, sampled)
        return total

    def _parameters(self) -> list[nn.Parameter]:
        head = [] if self._objective.gae is None else [self._value_weight, self._value_bias]
        return [*self._model.parameters(), *head]

    def _keep_hidden(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        del head
        self._hidden = inputs[0][0]

    def _values(self, rollout: Rollout) -> Tensor:
        """The value of what precedes each response token, [R], from the last forward pass."""
        states = self._hidden[len(rollout.prompt) - 1 : -1]
        return states @ self._value_weight[0] + self._value_bias

    @torch.no_grad()
    def _credited(self, groups: list[list[Rollout]]) -> list[list[Rollout]]:
        """The rollouts of the batch with an advantage for each token, normalised over the trained tokens."""
        credited: list[list[Rollout]] = []
        for group in groups:
            rollouts: list[Rollout] = []
            for rollout in group:
                self._distributions(self._model, rollout)
                credit = gae_credit(self._objective, rollout, self._values(rollout).tolist())
                rollouts.append(replace(rollout, credit=credit))
            credited.append(rollouts)
        tokens: list[float] = []
        for rollout in (rollout for group in credited for rollout in group):
            assert rollout.credit is not None
            tokens += [
                a for a, counts in zip(rollout.credit.advantages, rollout.trained, strict=True) if counts
            ]
        mean, deviation = statistics.fmean(tokens), statistics.pstdev(tokens)

        def normalised(rollout: Rollout) -> Rollout:
            assert rollout.credit is not None
            advantages = [(a - mean) / (deviation + 1e-8) for a in rollout.credit.advantages]
            return replace(rollout, credit=replace(rollout.credit, advantages=advantages))

        return [[normalised(rollout) for rollout in group] for group in credited]

    def _reward_penalty(self, rollout: Rollout) -> float:
        """The KL penalty on the reward of a rollout: beta times its sampled log(mu / q)."""
        if self._reference is None or not self._objective.kl_in_reward:
            return 0.0
        with torch.no_grad():
            reference = self._logprobs(self._reference, rollout).tolist()
        gaps = [
            sampled - q
            for sampled, q, counts in zip(rollout.sampled_logprobs, reference, rollout.trained, strict=True)
            if counts
        ]
        return self._objective.kl_coefficient * math.fsum(gaps)

    def _logprobs(self, model: PreTrainedModel, rollout: Rollout) -> Tensor:
        """log p of each response token, [R]."""
        return chosen(self._distributions(model, rollout), rollout)

    def _distributions(self, model: PreTrainedModel, rollout: Rollout) -> Tensor:
        """log softmax(logits / temperature) at each response token, [R, V]."""
        self._routers.replay(rollout.routes if model is self._model else None)
        tokens = torch.tensor([rollout.prompt + rollout.response])
        logits = model(input_ids=tokens, use_cache=False).logits[0].float() / TEMPERATURE
        first = len(rollout.prompt)
        return torch.log_softmax(logits[first - 1 : -1], dim=-1)

    def _build_optimizer(self, name: OptimizerName) -> torch.optim.Optimizer:
        # Weight decay only applies to matrices, not to norms and biases.
        decay, config = self._objective.weight_decay, self._config
        matrices = [parameter for parameter in self._parameters() if parameter.ndim >= 2]
        vectors = [parameter for parameter in self._parameters() if parameter.ndim < 2]
        groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
        if name == "sgd":
            return torch.optim.SGD(groups, lr=config.learning_rate)
        return torch.optim.AdamW(groups, betas=config.adam_betas, eps=config.adam_epsilon)


def chosen(distributions: Tensor, rollout: Rollout) -> Tensor:
    """The log-probability of each response token, [R], of the rows of [R, V]."""
    return torch.stack([distributions[t, token] for t, token in enumerate(rollout.response)])


def importance_weights(objective: Objective, rollout: Rollout, before: Tensor, sampled: Tensor) -> Tensor:
    """The off-policy weight of each response token, [R]."""
    assert objective.truncation is not None
    ratios = torch.exp(before - sampled)
    if objective.sequence_weights:
        product = torch.ones(())
        for t, counts in enumerate(rollout.trained):
            product = product * ratios[t] if counts else product
        ratios = product.expand(len(rollout.response))
    if objective.masks_weights:
        kept = (ratios >= objective.smallest_weight) & (ratios <= objective.truncation)
        return torch.where(kept, ratios, 0.0)
    return ratios.clamp(max=objective.truncation)


def groups_of(
    parts: Sequence[BatchPart], objective: Objective, penalty: Callable[[Rollout], float]
) -> list[list[Rollout]]:
    """The batch as groups of rollouts of one prompt, each with GRPO's advantage. The reward of a rollout is
    its score minus its `penalty`.
    """
    groups: list[list[Rollout]] = []
    for part in parts:
        block, size = part.rollouts, part.rollouts.group_size
        for group in range(len(block.group_ids)):
            members = range(group * size, (group + 1) * size)
            rewards = [float(part.scores.rewards[i]) for i in members]
            prompt = slice(int(block.prompt_offsets[group]), int(block.prompt_offsets[group + 1]))
            rollouts: list[Rollout] = []
            for i in members:
                own = slice(int(block.offsets[i]), int(block.offsets[i + 1]))
                trained = block.trainable[own]
                routes = None
                if block.routes is not None and block.prompt_routes is not None:
                    routes = np.concatenate([block.prompt_routes[prompt], block.routes[own]])
                rollouts.append(
                    Rollout(
                        prompt=block.prompt_tokens[prompt].tolist(),
                        response=block.tokens[own].tolist(),
                        trained=trained.tolist(),
                        sampled_logprobs=block.logprobs[own].tolist(),
                        advantage=0.0,
                        routes=routes,
                    )
                )
            rewards = [reward - penalty(rollout) for reward, rollout in zip(rewards, rollouts, strict=True)]
            truncated = [block.finish[i] == Finish.LENGTH for i in members]
            estimates = grpo_advantages(rewards) if objective.gae is None else rewards
            for i, advantage in enumerate(estimates):
                kept = not (objective.overlong_filtering and truncated[i])
                trained = [counts and kept for counts in rollouts[i].trained]
                rollouts[i] = replace(rollouts[i], advantage=advantage, trained=trained)
            groups.append(rollouts)
    return groups


def grpo_advantages(rewards: Sequence[float]) -> list[float]:
    """(r - mean) / std within a group, with the sample standard deviation; 0 if all rewards are equal."""
    if len(set(rewards)) == 1:
        return [0.0] * len(rewards)
    mean, deviation = statistics.fmean(rewards), statistics.stdev(rewards)
    return [(reward - mean) / (deviation + 1e-6) for reward in rewards]


def gae_credit(objective: Objective, rollout: Rollout, values: list[float]) -> Credit:
    """Advantages, before they are normalised, and returns of the tokens that count, from the last to the
    first; 0 at the others.
    """
    assert objective.gae is not None
    gamma, lam = objective.gae
    advantages, returns = [0.0] * len(values), [0.0] * len(values)
    next_value = next_advantage = 0.0
    reward = rollout.advantage
    for t in reversed(range(len(values))):
        if not rollout.trained[t]:
            continue
        delta = reward + gamma * next_value - values[t]
        advantages[t] = delta + gamma * lam * next_advantage
        returns[t] = advantages[t] + values[t]
        next_value, next_advantage, reward = values[t], advantages[t], 0.0
    return Credit(values, returns, advantages)


def value_losses(objective: Objective, values: Tensor, credit: Credit) -> Tensor:
    """Half of the larger of two squared errors at each response token, [R]: that of the value, and that of
    the value after it has moved by at most `value_clip`.
    """
    losses: list[Tensor] = []
    for value, old, expected in zip(values, credit.values, credit.returns, strict=True):
        error = (value - expected) ** 2
        if objective.value_clip is not None:
            moved = old + (value - old).clamp(-objective.value_clip, objective.value_clip)
            error = torch.maximum(error, (moved - expected) ** 2)
        losses.append(error / 2)
    return torch.stack(losses)


def token_weights(objective: Objective, lengths: Sequence[int]) -> list[float]:
    """The weight of a token of each rollout in the loss of a minibatch of rollouts with these lengths."""
    match objective.aggregation:
        case "token":
            return [1 / sum(lengths)] * len(lengths)
        case "sequence":
            return [1 / (len(lengths) * length) if length else 0.0 for length in lengths]
        case "constant":
            return [1 / (len(lengths) * MAX_NEW_TOKENS)] * len(lengths)


def policy_losses(objective: Objective, rollout: Rollout, logprobs: Tensor, old: Tensor) -> Tensor:
    """The policy loss at each response token, [R]."""
    tokens = range(len(rollout.response))
    trained = [t for t in tokens if rollout.trained[t]]
    match objective.loss:
        case "clipped":
            return torch.stack(
                [
                    surrogate_loss(objective, torch.exp(logprobs[t] - old[t]), rollout.advantage_of(t))
                    for t in tokens
                ]
            )
        case "cispo":
            terms: list[Tensor] = []
            for t in tokens:
                ratio = math.exp(float(logprobs[t].detach()) - float(old[t]))
                weight = min(max(ratio, 1 - objective.clip[0]), 1 + objective.clip[1])
                terms.append(-weight * rollout.advantage_of(t) * logprobs[t])
            return torch.stack(terms)
        case "gspo":
            # (p(y) / p_old(y)) ** (1 / |y|), where the probability of a response is a product.
            log_quotient = sum((logprobs[t] - old[t] for t in trained), torch.zeros(()))
            loss = surrogate_loss(objective, torch.exp(log_quotient / len(trained)), rollout.advantage)
        case "gmpo":
            # A times the geometric mean of the clipped ratios, whose product is the exp of a sum.
            log_product = torch.zeros(())
            for t in trained:
                log_ratio = logprobs[t] - old[t]
                if rollout.advantage > 0:
                    log_product = log_product + log_ratio.clamp(max=objective.clip[1])
                else:
                    log_product = log_product + log_ratio.clamp(min=-objective.clip[0])
            loss = -rollout.advantage * torch.exp(log_product / len(trained))
    return loss.expand(len(tokens))


def surrogate_loss(objective: Objective, ratio: Tensor, advantage: float) -> Tensor:
    """PPO's clipped surrogate of one ratio, negated."""
    bounded = ratio.clamp(1 - objective.clip[0], 1 + objective.clip[1])
    surrogate = torch.minimum(ratio * advantage, bounded * advantage)
    if objective.dual_clip is not None and advantage < 0:
        surrogate = torch.maximum(surrogate, torch.tensor(objective.dual_clip * advantage))
    return -surrogate


def kl_penalty(objective: Objective, logprobs: Tensor, reference: Tensor) -> Tensor:
    """The penalty at each token, [R], with its value and gradient as in the papers."""
    gap = logprobs - reference
    if objective.kl == "k2":
        return gap**2 / 2
    if objective.kl == "k3":
        return torch.exp(-gap) + gap - 1
    # The gradient of E[log p - log q] under p is E[(log p - log q) grad log p].
    score = gap.detach() * logprobs
    return score + (gap - score).detach()


@dataclass
class _Router:
    """What one router did with the last rollout."""

    module: Any
    scores: Tensor = field(default_factory=lambda: torch.empty(0))  # [T, E]
    chosen: Tensor = field(default_factory=lambda: torch.empty(0))  # [T, k]
    loads: Tensor = field(default_factory=lambda: torch.empty(0))  # [E], of the minibatch

    @property
    def sigmoid(self) -> bool:
        """DeepSeek-V3 scores by a sigmoid and has a selection bias; the other families use a softmax."""
        return hasattr(self.module, "e_score_correction_bias")


class _Routers:
    """The model's routers in order: observed, made to replay routes, and balanced."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._routers = [_Router(module) for module in router_modules(model)]
        self._routes: NDArray[np.int16] | None = None
        for index, router in enumerate(self._routers):
            router.module.register_forward_hook(self._hook(index, router))

    def replay(self, routes: NDArray[np.int16] | None) -> None:
        """Use these experts [T, R, k] in the next forward pass, except where they are -1."""
        self._routes = routes

    def balance_losses(self) -> list[Tensor]:
        """sum_i f_i P_i of each router (eq. 17 to 20) for the last rollout, expert by expert.

        f_i counts the tokens whose k largest *scores* include expert i. The selection bias (eq. 16), group
        limits and replayed routes determine where a token goes, but do not affect eq. 18.
        """
        losses: list[Tensor] = []
        for router in self._routers:
            tokens, experts = router.scores.shape
            k = router.chosen.shape[1]
            order = router.scores.detach().sort(dim=-1, descending=True, stable=True)
            gap = float((order.values[:, k - 1] - order.values[:, k]).min())
            assert gap >= CLOSEST, f"two scores are {gap:.1e} apart: draw the batches from another seed"
            ranked = order.indices[:, :k].tolist()
            loss = torch.zeros(())
            for expert in range(experts):
                frequency = experts / (k * tokens) * sum(expert in row for row in ranked)
                share = (router.scores[:, expert] / router.scores.sum(dim=-1)).sum() / tokens
                loss = loss + frequency * share
            losses.append(loss)
        return losses

    def forget_loads(self) -> None:
        for router in self._routers:
            router.loads = torch.zeros(router.module.num_experts, dtype=torch.float64)

    def add_loads(self) -> None:
        """Count the experts of the last rollout's tokens."""
        for router in self._routers:
            for expert in router.chosen.flatten().tolist():
                router.loads[expert] += 1

    @torch.no_grad()
    def move_biases(self, speed: float) -> None:
        """Auxiliary-loss-free balancing (section 2.1.2): after each optimizer step, the bias of an expert
        increases by `speed` if it had less than the mean load, and decreases if it had more.
        """
        for router in self._routers:
            if not router.sigmoid:
                continue
            bias, mean = router.module.e_score_correction_bias, float(router.loads.mean())
            for expert, load in enumerate(router.loads.tolist()):
                bias[expert] += speed if load < mean else -speed if load > mean else 0.0

    def _hook(self, index: int, router: _Router) -> Any:
        def hook(module: Any, inputs: Any, outputs: Any) -> Any:
            del inputs
            logits, weights, chosen = outputs
            router.scores = logits.float().sigmoid() if router.sigmoid else logits.float().softmax(dim=-1)
            router.chosen = chosen
            if self._routes is None:
                return None
            recorded = torch.from_numpy(self._routes[:, index].astype(np.int64))
            router.chosen = torch.where(recorded >= 0, recorded, chosen)
            weights = router.scores.gather(1, router.chosen)
            if module.norm_topk_prob:
                weights = weights / weights.sum(dim=-1, keepdim=True)
            return logits, weights * module.routed_scaling_factor, router.chosen

        return hook


def router_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that choose experts, in the model's order."""
    return [module for module in model.modules() if type(module).__name__.endswith("Router")]
