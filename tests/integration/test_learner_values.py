"""A learner with a value head, one rank in this process: the head is trained and saved with the model, and
neither published nor exported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from orchestrator.errors import CheckpointError
from orchestrator.training.learner.deepspeed_learner import DeepSpeedLearner, PolicyModel
from orchestrator.training.learner.offline import read_weights
from orchestrator.training.learner.sharding.distributed import DistributedInit
from orchestrator.training.learner.value_head import is_value_head
from orchestrator.training.models.characters import character_tokenizer
from tests.contracts.learner_contract import published
from tests.support.exactness_setting import OBJECTIVES, Case, batch, learner_config, update_rule
from tests.support.lanes import also_long
from tests.support.moe_families import build

pytestmark = pytest.mark.slow


def learner(
    zero_stage: int, objective: str = "gae", dtype: torch.dtype = torch.float32, **changes: Any
) -> DeepSpeedLearner:
    config = learner_config(Case("tiny_moe", 1, 1, zero_stage, objective), "adamw")
    model = build("tiny_moe")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return DeepSpeedLearner(
        DistributedInit(0, 1, "auto", "cpu"),
        config.model_copy(update=changes),
        update_rule(OBJECTIVES[objective]),
        PolicyModel(model, character_tokenizer(64)),
        steps=10,
    )


@pytest.mark.parametrize("zero_stage", also_long([1, 3], [0, 2]))
def test_the_value_head_is_neither_published_nor_exported(zero_stage: int, tmp_path: Path) -> None:
    trained = learner(zero_stage)
    trained.update(0, batch(0))
    weights = published(trained)
    plan = trained.write_plan()
    trained.export(tmp_path / "export")
    trained.save(tmp_path)
    trained.close()

    model = build("tiny_moe")
    model.load_state_dict(weights)  # strict: no name is missing, and none is new
    if plan is not None:
        assert {piece.name for pieces, _ in plan.contents for piece in pieces} == set(weights)
    saved = dict(read_weights(tmp_path))
    assert saved.keys() == weights.keys()
    tokens = torch.tensor([[1, 2, 3, 4]])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    torch.testing.assert_close(loaded(tokens).logits, model.eval()(tokens).logits)
    assert not any(map(is_value_head, loaded.state_dict()))


@pytest.mark.parametrize("stages", also_long([(3, 1)], [(1, 3), (0, 2), (2, 0)]), ids=str)
def test_the_value_head_comes_back_with_a_checkpoint(stages: tuple[int, int], tmp_path: Path) -> None:
    saved_at, loaded_at = stages
    before = learner(saved_at, learning_rate=1e-2, warmup_steps=0)
    for step in range(2):
        before.update(step, batch(step))
    before.save(tmp_path)
    expected = dict(before.update(2, batch(2)).metrics)
    before.close()
    assert expected["value/explained_variance"] != 0  # the values are not those of a new head

    after = learner(loaded_at, learning_rate=1e-2, warmup_steps=0)
    after.load(tmp_path)
    got = dict(after.update(2, batch(2)).metrics)
    after.close()
    for name in ("policy/loss", "policy/grad_norm", "value/loss", "value/explained_variance"):
        assert got[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-7)


def test_a_checkpoint_without_a_value_head_is_refused(tmp_path: Path) -> None:
    without = learner(1, "token")
    without.save(tmp_path)
    without.close()
    other = learner(1)
    with pytest.raises(CheckpointError, match=r"value_head\.weight: the checkpoint has shape None"):
        other.load(tmp_path)
    other.close()


def test_the_value_head_learns_to_predict_the_rewards() -> None:
    trained = learner(1, "gae_one_update", learning_rate=1e-2, warmup_steps=0)
    metrics = [dict(trained.update(step, batch(0)).metrics) for step in range(20)]
    trained.close()
    assert metrics[0]["value/explained_variance"] == pytest.approx(0, abs=1e-9)  # all values are 0
    assert metrics[-1]["value/explained_variance"] > 0.5
    assert metrics[-1]["value/loss"] < 0.5 * metrics[0]["value/loss"]


def test_a_bfloat16_model_has_float32_values() -> None:
    trained = learner(1, dtype=torch.bfloat16, learning_rate=1e-3, warmup_steps=0)
    trained.update(0, batch(0))
    metrics = trained.update(1, batch(1)).metrics
    names = set(published(trained))
    trained.close()
    assert metrics["value/loss"] > 0
    assert not any(map(is_value_head, names))


def test_a_learner_without_a_value_head_has_no_metrics_of_one() -> None:
    plain = learner(1, "token")
    metrics = plain.update(0, batch(0)).metrics
    plain.close()
    assert not any(name.startswith("value/") for name in metrics)
