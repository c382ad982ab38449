"""Routers of mixture-of-experts models: find them, record their choices, and replay given routes.

Routers of transformers' models return (router logits [T, E], weights [T, k], expert indices [T, k]); the
model's class declares which modules they are (`_can_record_outputs`). With expert parallelism the
routers are DeepSpeed's, which return (weights [T, k], expert indices [T, k], loads [E]) and compute
their logits in a module `gate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

BIAS = "e_score_correction_bias"
"""The buffer of a DeepSeek-V3 router that is added to its scores for choosing
experts, but not for weighting them.
"""

Seen = Callable[[Tensor, Tensor], None]
"""Receives the logits [T, E] and the chosen experts [T, k] of each forward pass."""


def find_routers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Find the routers by name, in the model's order; none if the model is dense."""
    spread = {
        f"{name}.router": layer.router
        for name, layer in model.named_modules()
        if getattr(layer, "_is_autoep_layer", False) and isinstance(layer.router, nn.Module)
    }
    if spread:
        return spread
    inner = model.base_model
    recorder: Any = (getattr(inner, "_can_record_outputs", None) or {}).get("router_logits")
    router_class = getattr(recorder, "target_class", recorder)
    if not isinstance(router_class, type):
        return {}
    return {name: module for name, module in model.named_modules() if isinstance(module, router_class)}


def experts_of(router: nn.Module) -> int:
    """The number of experts that the router chooses from."""
    experts = router.num_experts
    assert isinstance(experts, int)
    return experts


def number_of_experts(model: PreTrainedModel) -> int:
    """The number of routed experts of a layer; 0 for a dense model."""
    return max((experts_of(router) for router in find_routers(model).values()), default=0)


def scores_by_sigmoid(router: nn.Module) -> bool:
    """Whether the router scores experts by a sigmoid (those with a selection bias) or by a softmax."""
    return getattr(router, BIAS, None) is not None


def observe(router: nn.Module, seen: Seen) -> None:
    """Call `seen` at each forward pass of the router from now on."""
    logits = logits_of_gate(router)

    def look(_module: nn.Module, _inputs: object, outputs: tuple[Tensor, Tensor, Tensor]) -> None:
        if logits is None:
            seen(outputs[0], outputs[2])
        else:
            seen(logits.pop(), outputs[1])

    router.register_forward_hook(look)


class RouteRecorder:
    """Records which experts the routers of a model choose while it samples."""

    def __init__(self, model: PreTrainedModel) -> None:
        routers = list(find_routers(model).values())
        self._chosen: list[Tensor | None] = [None] * len(routers)
        for index, router in enumerate(routers):
            observe(router, self._note(index))

    def __bool__(self) -> bool:
        """Whether the model has routers."""
        return bool(self._chosen)

    def take(self) -> Tensor:
        """The experts chosen in the last forward pass: [T, R, k] int16, on the CPU, for R routers."""
        chosen = [each for each in self._chosen if each is not None]
        return torch.stack(chosen, dim=1).to(torch.int16).cpu()

    def _note(self, index: int) -> Seen:
        def note(_logits: Tensor, chosen: Tensor) -> None:
            self._chosen[index] = chosen

        return note


class RouteReplay:
    """Makes the routers take the routes that were recorded while sampling (rollout routing replay, R3,
    https://arxiv.org/abs/2510.11370). The sampler's choice of experts is used, with the router's own weights
    for that choice, so that the router still learns.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Must be created before anything observes the routers, so that observers see the routes taken."""
        self._routes: Tensor | None = None
        for index, router in enumerate(find_routers(model).values()):
            self._replace(index, router)

    def use(self, routes: Tensor | None) -> None:
        """Set the routes of the following forward passes: integers [T, R, k], -1 where the router chooses
        itself. With None it always chooses itself.
        """
        self._routes = routes

    def _replace(self, index: int, router: nn.Module) -> None:
        gate_logits = logits_of_gate(router)

        def replace(
            _module: nn.Module, _inputs: object, outputs: tuple[Tensor, Tensor, Tensor]
        ) -> tuple[Tensor, Tensor, Tensor] | None:
            logits = outputs[0] if gate_logits is None else gate_logits.pop()
            if self._routes is None:
                return None
            weights, own = outputs[1:] if gate_logits is None else outputs[:2]
            routes = self._routes[:, index]
            chosen = torch.where(routes >= 0, routes.to(own), own)
            weights = route_weights(router, logits, chosen).to(weights)
            if gate_logits is None:
                return logits, weights, chosen
            loads = torch.bincount(chosen.flatten(), minlength=experts_of(router))
            return weights, chosen, loads.to(outputs[2])

        router.register_forward_hook(replace)


def route_weights(router: nn.Module, logits: Tensor, chosen: Tensor) -> Tensor:
    """The router's weights of the experts `chosen` [T, k], given its logits [T, E]:
    float32 [T, k], with gradient.
    """
    scores = logits.float().sigmoid() if scores_by_sigmoid(router) else logits.float().softmax(dim=-1)
    weights = scores.gather(1, chosen)
    if _normalises(router):
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    scale: float = getattr(router, "route_scale", getattr(router, "routed_scaling_factor", 1.0))
    return weights * scale


def _normalises(router: nn.Module) -> bool:
    """Whether the weights of a token's experts add up to 1 (before scaling). Routers without a setting for it
    are those of DeepSeek-V2, which never normalise, and of Mixtral and Granite-MoE, which always do.
    """
    declared = getattr(router, "route_norm", getattr(router, "norm_topk_prob", None))
    return bool(declared) if declared is not None else not hasattr(router, "routed_scaling_factor")


def logits_of_gate(router: nn.Module) -> list[Tensor] | None:
    """A list that will hold the logits of the last forward pass of DeepSpeed's router; None for a router of
    transformers, which returns its logits.
    """
    gate = getattr(router, "gate", None)
    if not isinstance(gate, nn.Module):
        return None
    held: list[Tensor] = []

    def note(_module: nn.Module, _inputs: object, logits: Tensor) -> None:
        held[:] = [logits]

    gate.register_forward_hook(note)
    return held
