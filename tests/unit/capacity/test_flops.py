"""FLOPs: equal to those that torch's counter measures for the real models."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from orchestrator.capacity.flops import Pass, forward_flops, head_flops, inference_flops, training_flops
from orchestrator.capacity.shape import read_shape
from tests.support.capacity_measured import counted_flops, small_architectures

SMALL = small_architectures()


@pytest.fixture(scope="module")
def plain_torch() -> Iterator[Executor]:
    """A process in which nothing has used DeepSpeed. DeepSpeed replaces torch's linear function by one with
    which a recomputed layer computes its last product again, which torch omits.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_flops_equal_those_of_torchs_counter(name: str, recompute: bool, plain_torch: Executor) -> None:
    rows, length = 2, 48
    counted = plain_torch.submit(counted_flops, SMALL[name], rows, length, recompute=recompute)
    forward, both = counted.result()
    work = Pass(rows * length, rows * length, length, recompute)
    shape = read_shape(SMALL[name])
    assert inference_flops(shape, work, causal=False) == pytest.approx(forward, rel=1e-9)
    assert training_flops(shape, work, causal=False) == pytest.approx(both, rel=1e-9)


def test_causal_attention_counts_half_and_the_head_only_trained_tokens() -> None:
    shape = read_shape(SMALL["tiny_moe"])
    whole, causal = forward_flops(shape, 100, causal=False), forward_flops(shape, 100)
    assert causal.attention_scores == pytest.approx(whole.attention_scores * 101 / 200)
    assert causal.layers - causal.attention_scores == whole.layers - whole.attention_scores
    some, none = (training_flops(shape, Pass(100, trained, 100, False)) for trained in (60, 0))
    assert some - none == pytest.approx(60 * 3 * head_flops(shape))
