"""FLOPs: equal to what torch's counter counts of the real models."""

from __future__ import annotations

import pytest

from benchmarks.capacity_measured import counted_flops, small_architectures
from orchestrator.capacity.flops import Pass, forward_flops, head_flops, inference_flops, training_flops
from orchestrator.capacity.shape import read_shape

SMALL = small_architectures()


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_flops_are_what_the_counter_counts(name: str, recompute: bool) -> None:
    rows, length = 2, 48
    forward, both = counted_flops(SMALL[name], rows, length, recompute=recompute)
    work = Pass(rows * length, rows * length, length, recompute)
    shape = read_shape(SMALL[name])
    assert inference_flops(shape, work, causal=False) == pytest.approx(forward, rel=1e-9)
    assert training_flops(shape, work, causal=False) == pytest.approx(both, rel=1e-9)


def test_causal_attention_is_half_the_square_and_the_head_counts_only_trained_tokens() -> None:
    shape = read_shape(SMALL["tiny_moe"])
    whole, causal = forward_flops(shape, 100, causal=False), forward_flops(shape, 100)
    assert causal.attention_scores == pytest.approx(whole.attention_scores * 101 / 200)
    assert causal.layers - causal.attention_scores == whole.layers - whole.attention_scores
    some, none = (training_flops(shape, Pass(100, trained, 100, False)) for trained in (60, 0))
    assert some - none == pytest.approx(60 * 3 * head_flops(shape))
