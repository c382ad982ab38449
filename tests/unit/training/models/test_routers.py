"""Recording and replaying the routes of tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.training.models.routers import RouteRecorder, RouteReplay, find_routers, route_weights
from tests.support.moe_families import MODELS, VOCABULARY, build

IDS = torch.arange(2 * 7).view(2, 7) % VOCABULARY


@pytest.mark.parametrize("name", MODELS)
def test_recomputed_route_weights_equal_the_routers_own(name: str) -> None:
    model = build(name)
    seen: list[tuple[torch.nn.Module, tuple[Tensor, Tensor, Tensor]]] = []

    def look(router: torch.nn.Module, _: object, outputs: Any) -> None:
        seen.append((router, outputs))

    for router in find_routers(model).values():
        router.register_forward_hook(look)
    model(IDS)
    assert seen
    for router, (logits, weights, chosen) in seen:
        torch.testing.assert_close(route_weights(router, logits, chosen), weights, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_only_the_recorded_routes_reproduce_the_logits(name: str) -> None:
    model = build(name)
    replay, recorder = RouteReplay(model), RouteRecorder(model)
    own = model(IDS).logits
    routes = recorder.take().long()
    assert routes.shape == (14, len(find_routers(model)), 2)

    replay.use(routes)
    torch.testing.assert_close(model(IDS).logits, own, rtol=1e-5, atol=1e-6)
    replay.use((routes + 1) % 8)
    assert not torch.allclose(model(IDS).logits, own, atol=1e-4)
    assert torch.equal(recorder.take().long(), (routes + 1) % 8)  # observers see the routes that were taken
    replay.use(torch.full_like(routes, -1))
    torch.testing.assert_close(model(IDS).logits, own, rtol=1e-5, atol=1e-6)
    replay.use(None)
    assert torch.equal(model(IDS).logits, own)


def test_a_router_gets_gradients_from_replayed_routes() -> None:
    model = build("tiny_moe")
    replay, recorder = RouteReplay(model), RouteRecorder(model)
    model(IDS)
    replay.use((recorder.take().long() + 1) % 8)
    model(IDS).logits.square().sum().backward()
    (router,) = find_routers(model).values()
    assert isinstance(router.weight, Tensor)
    assert router.weight.grad is not None
    assert router.weight.grad.abs().sum() > 0
