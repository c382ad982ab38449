"""Activations and state, compared with what autograd saves and with what DeepSpeed allocates."""

from __future__ import annotations

import pytest

from orchestrator.capacity.activations import MicroBatch, cache_bytes, micro_batch_activations
from orchestrator.capacity.parameters import total_parameters
from orchestrator.capacity.shape import ModelShape, read_shape
from orchestrator.capacity.state import Sharding, State, learner_state
from tests.support.capacity_measured import measured_pass, published, small_architectures

SMALL = small_architectures()
ROWS, LENGTH, TRAINED = 4, 64, 192


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_activations_equal_the_tensors_saved_by_autograd(name: str, half: bool) -> None:
    measured = measured_pass(SMALL[name], ROWS, LENGTH, TRAINED, half=half, recompute=False)
    shape, size = read_shape(SMALL[name]), 2 if half else 4
    planned = micro_batch_activations(shape, MicroBatch(ROWS * LENGTH, TRAINED, False, size, 1))
    head = TRAINED * (shape.hidden * size + 8)
    assert planned.kept - head == pytest.approx(measured.saved, rel=0.05)
    assert planned.most == pytest.approx(measured.peak, rel=0.1)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", ["smollm2", "deepseek_v3", "qwen3_moe"])  # dense; shared experts; without
def test_recomputed_layers_keep_their_inputs(name: str, half: bool) -> None:
    measured = measured_pass(SMALL[name], ROWS, LENGTH, TRAINED, half=half, recompute=True)
    shape, size = read_shape(SMALL[name]), 2 if half else 4
    planned = micro_batch_activations(shape, MicroBatch(ROWS * LENGTH, TRAINED, True, size, 1))
    head = TRAINED * (shape.hidden * size + 8)
    assert planned.kept - head == pytest.approx(measured.saved, rel=0.02)
    assert planned.most == pytest.approx(measured.peak, rel=0.1)


@pytest.mark.parametrize("recompute", [False, True])
def test_expert_gradients_dominate_a_small_micro_batch(recompute: bool) -> None:
    rows, length = 2, 16
    many = SMALL["qwen3_moe"] | {"num_experts": 64, "moe_intermediate_size": 96}
    measured = measured_pass(many, rows, length, 20, half=False, recompute=recompute)
    planned = micro_batch_activations(read_shape(many), MicroBatch(rows * length, 20, recompute, 4, 1))
    gates = 64 * 2 * 96 * 128 * 4
    assert gates < measured.peak < 1.5 * gates
    assert planned.most == pytest.approx(measured.peak, rel=0.1)
    shared = micro_batch_activations(read_shape(many), MicroBatch(rows * length, 20, recompute, 4, 8))
    assert shared.most < planned.most / 2


def sharded(shape: ModelShape, **changes: int | bool) -> State:
    values = {
        "world_size": 1,
        "zero_stage": 1,
        "expert_parallel_size": 1,
        "element_bytes": 2,
        "offload_optimizer": False,
        "accelerator": True,
    }
    return learner_state(shape, Sharding(**{**values, **changes}))  # pyright: ignore[reportArgumentType]


def test_zero_partitions_the_state_of_its_stage() -> None:
    shape = read_shape(published("qwen3_30b_a3b"))
    n = total_parameters(shape).total
    one, two, three = (sharded(shape, world_size=8, zero_stage=stage) for stage in (1, 2, 3))
    assert one.weights == two.weights == 2 * n
    assert three.weights == pytest.approx(2 * n / 8, rel=0.001)
    assert {state.optimizer for state in (one, two, three)} == {12 * n // 8 + 4}
    assert (one.gradients, two.gradients) == (6 * n, 4 * n // 8)
    whole = sharded(shape, zero_stage=0, element_bytes=4)
    assert (whole.weights, whole.gradients, whole.reduce_buckets) == (4 * n, 4 * n, 0)


def test_experts_are_sharded_over_the_expert_parallel_ranks_and_partitioned_over_the_others() -> None:
    shape = read_shape(published("qwen3_30b_a3b"))
    parameters = total_parameters(shape)
    spread = sharded(shape, world_size=16, zero_stage=2, expert_parallel_size=8)
    others = parameters.total - parameters.routed_experts
    assert spread.weights == 2 * (others + parameters.routed_experts // 8)
    assert spread.optimizer == pytest.approx(12 * parameters.total / 16, rel=1e-6)


def test_an_offloaded_optimizer_is_in_host_memory() -> None:
    shape = read_shape(published("granite_moe"))
    here, there = (sharded(shape, zero_stage=2, offload_optimizer=offload) for offload in (False, True))
    assert there.optimizer == there.step == 0
    assert there.host >= here.optimizer


def test_the_latent_cache_is_a_fraction_of_the_key_value_cache() -> None:
    latent, grouped = (read_shape(published(name)) for name in ("deepseek_v3", "mixtral_8x7b"))
    assert cache_bytes(latent, 1, 1, 2) == 61 * 576 * 2  # 70 KB a token, arXiv:2412.19437 and its successors
    assert cache_bytes(grouped, 2, 10, 2) == 2 * 10 * 32 * 2 * 8 * 128 * 2
