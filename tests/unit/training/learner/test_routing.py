"""Expert loads, and the selection bias that balances them."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from orchestrator.training.learner.routing import RoutingMeter, RoutingSums
from orchestrator.training.models.routers import BIAS, find_routers
from tests.support.moe_families import build

_CPU = torch.device("cpu")


def test_a_dense_model_has_no_routers_and_no_metrics() -> None:
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    meter = RoutingMeter(LlamaForCausalLM(config), _CPU)
    assert meter.metrics(meter.sums) == {}


@pytest.mark.parametrize(
    ("model", "routers"),
    [
        ("tiny_moe", ["model.layers.1.mlp.gate"]),
        ("qwen3_moe", ["model.layers.0.mlp.gate", "model.layers.1.mlp.gate"]),
    ],
)
def test_routers_are_found_in_every_family(model: str, routers: list[str]) -> None:
    assert list(find_routers(build(model))) == routers


def test_padding_and_uncounted_passes_do_not_count() -> None:
    model = build("tiny_moe")
    meter = RoutingMeter(model, _CPU)
    tokens = torch.tensor([[1, 2, 3, 4]])
    model(tokens)
    with meter.counting(torch.tensor([True, True, True, False])):
        model(tokens)
    padded = meter.sums
    meter.reset()
    assert meter.sums.loads.sum() == meter.sums.entropies.sum() == meter.sums.tokens == 0
    with meter.counting(torch.tensor([True, True, True])):
        model(tokens[:, :3])

    assert padded.tokens == meter.sums.tokens == 3
    assert padded.loads.sum() == 3 * 2  # two experts a token
    torch.testing.assert_close(padded.loads, meter.sums.loads)
    torch.testing.assert_close(padded.entropies, meter.sums.entropies, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", ["tiny_moe", "qwen3_moe"])
def test_an_indifferent_router_has_the_entropy_of_the_uniform_distribution(model: str) -> None:
    built = build(model)
    for router in find_routers(built).values():
        assert isinstance(router.weight, torch.Tensor)
        torch.nn.init.zeros_(router.weight)
    meter = RoutingMeter(built, _CPU)
    with meter.counting(torch.ones(5, dtype=torch.bool)):
        built(torch.tensor([[1, 2, 3, 4, 5]]))
    metrics = meter.metrics(meter.sums)
    assert metrics["moe/router_entropy"] == pytest.approx(math.log(8), rel=1e-5)
    assert metrics["moe/expert_load_max_over_mean"] == pytest.approx(4)  # all tokens on 2 of 8 experts


def test_the_bias_rises_where_the_load_is_below_the_mean_and_falls_above() -> None:
    model = build("tiny_moe")
    meter = RoutingMeter(model, _CPU)
    sums = RoutingSums(
        torch.tensor([[4.0, 0, 2, 2, 2, 2, 2, 2]]).double(), torch.zeros(1).double(), torch.tensor(8.0)
    )
    meter.update_biases(sums, speed=0.25)
    (router,) = find_routers(model).values()
    assert getattr(router, BIAS).tolist() == [-0.25, 0.25, 0, 0, 0, 0, 0, 0]
    assert meter.metrics(sums)["moe/bias_norm"] == pytest.approx(math.sqrt(2) / 4)


def test_a_family_without_a_selection_bias_is_not_changed() -> None:
    model = build("qwen3_moe")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    meter = RoutingMeter(model, _CPU)
    sums = RoutingSums(torch.arange(16.0).view(2, 8), torch.ones(2), torch.tensor(8.0))
    meter.update_biases(sums, speed=0.25)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert "moe/bias_norm" not in meter.metrics(sums)
