"""Expert loads as shares and metrics of each layer."""

from __future__ import annotations

import math

import pytest
import torch

from orchestrator.training.learner.expert_load import layer_metrics, layer_numbers, load_shares
from orchestrator.training.records import ExpertLoad

ROUTERS = ("model.layers.1.mlp.gate", "model.layers.2.mlp.gate")


def test_shares_are_of_each_layer_and_sum_to_one() -> None:
    loads = load_shares(ROUTERS, torch.tensor([[6.0, 2.0], [1.0, 3.0]]))
    assert loads == (ExpertLoad(1, (0.75, 0.25)), ExpertLoad(2, (0.25, 0.75)))


def test_layers_without_tokens_and_dense_models_have_no_loads() -> None:
    assert load_shares(ROUTERS, torch.tensor([[0.0, 0.0], [1.0, 3.0]])) == (ExpertLoad(2, (0.25, 0.75)),)
    assert load_shares((), torch.zeros(0, 0)) == ()
    assert layer_metrics((), torch.zeros(0, 0), torch.zeros(0)) == {}


def test_metrics_have_the_layer_number_of_the_model() -> None:
    found = layer_metrics(ROUTERS, torch.tensor([[6.0, 2.0], [2.0, 2.0]]), torch.tensor([0.5, math.log(2)]))
    assert found == pytest.approx(
        {
            "moe/expert_load_max_over_mean/layer_1": 1.5,
            "moe/router_entropy/layer_1": 0.5,
            "moe/expert_load_max_over_mean/layer_2": 1.0,
            "moe/router_entropy/layer_2": math.log(2),
        }
    )
    assert layer_numbers(["gate", "model.layers.12.block_sparse_moe.router"]) == [0, 12]
