"""Bugs of DeepSpeed 0.19.8 that the learner works around. If one of these tests fails, the bug is fixed and
the workaround can be removed.
"""

from __future__ import annotations

import pytest
from deepspeed.module_inject.auto_ep import AutoEP
from deepspeed.module_inject.auto_ep_config import parse_autoep_config

from tests.support.moe_families import build

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("model", ["mixtral", "qwen3_moe"])
def test_the_presets_of_two_families_fail_with_this_transformers(model: str) -> None:
    """`learner.expert_parallel._preset` uses the same presets without their adapter."""
    auto_ep = AutoEP(build(model), parse_autoep_config({"enabled": True, "preset_model": model}))
    with pytest.raises(TypeError, match=r"_CanRecordRegistry\.get"):
        auto_ep.replace_moe_layers(auto_ep.ep_parser(), ep_size=1, ep_rank=0)


def test_granite_has_no_preset() -> None:
    auto_ep = AutoEP(build("granite_moe"), parse_autoep_config({"enabled": True}))
    assert auto_ep.ep_parser() == []
