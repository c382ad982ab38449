"""The learner on DeepSpeed, with one rank in this process: the contract, and the
properties of the real implementation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrator.errors import CheckpointError, ConfigError, NonFiniteError
from orchestrator.training.learner.deepspeed_learner import DeepSpeedLearner, PolicyModel
from orchestrator.training.learner.losses.importance import Correction
from orchestrator.training.learner.port import Learner
from orchestrator.training.learner.rows import AlgorithmSpec
from orchestrator.training.learner.sharding.distributed import DistributedInit
from orchestrator.training.models.characters import character_tokenizer
from orchestrator.training.records import BatchPart
from tests.contracts.learner_contract import LearnerContract, published, same_weights, spoilt
from tests.support.exactness_setting import Case, batch, learner_config, update_rule
from tests.support.lanes import also_long
from tests.support.moe_families import build

pytestmark = pytest.mark.slow


def _build(
    zero_stage: int = 1,
    model: str = "tiny_moe",
    rule: AlgorithmSpec | None = None,
    reference: bool = False,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> DeepSpeedLearner:
    config = learner_config(Case(model, 1, 1, zero_stage), "adamw").model_copy(update=changes)
    built = build(model)
    for parameter in built.parameters():
        parameter.data = parameter.data.to(dtype)
    trainee = PolicyModel(built, character_tokenizer(64), build(model) if reference else None)
    init = DistributedInit(0, 1, "auto", "cpu")
    return DeepSpeedLearner(init, config, rule or update_rule(), trainee, steps=10)


class TestDeepSpeedLearner(LearnerContract):
    @pytest.fixture(params=also_long([1, 3], [0, 2]), ids="zero{}".format)
    def learner(self, request: pytest.FixtureRequest) -> Iterator[Learner]:
        learner = _build(zero_stage=request.param)
        yield learner
        learner.close()


def _updated(parts: list[BatchPart], **changes: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
    learner = _build(**changes)
    metrics = dict(learner.update(0, parts).metrics)
    weights = published(learner)
    learner.close()
    return metrics, weights


def _close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    far = [name for name in one if not torch.allclose(one[name], other[name], rtol=1e-5, atol=1e-6)]
    assert far == []


def test_packing_and_micro_batches_do_not_change_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, weights = _updated(batch(0), micro_batch_tokens=10_000)
    split_metrics, split_weights = _updated(batch(0), micro_batch_tokens=25)
    monkeypatch.setattr("orchestrator.training.learner.deepspeed_learner.layout_for", lambda model: "packed")
    packed_metrics, packed_weights = _updated(batch(0), micro_batch_tokens=40)

    _close(weights, split_weights)
    _close(weights, packed_weights)
    assert packed_metrics["learner/padding_fraction"] == 0 < metrics["learner/padding_fraction"]
    ours = {name for name in metrics if name != "learner/padding_fraction"}
    for other in (split_metrics, packed_metrics):
        assert {name: other[name] for name in ours} == pytest.approx(
            {name: metrics[name] for name in ours}, rel=1e-4
        )


def test_uninformative_groups_are_skipped_without_changing_the_update() -> None:
    kept = dataclasses.replace(update_rule(), drop_uninformative=False)
    # Rows that are not computed do not enter the balance loss of either.
    unbalanced = {"router_bias_update_speed": 0.0, "sequence_balance_coefficient": 0.0}
    metrics, weights = _updated(batch(0), **unbalanced)
    kept_metrics, kept_weights = _updated(batch(0), rule=kept, **unbalanced)
    assert metrics["learner/tokens"] < kept_metrics["learner/tokens"]
    assert metrics["policy/loss"] == pytest.approx(kept_metrics["policy/loss"], rel=1e-5)
    _close(weights, kept_weights)


def test_minibatches_take_one_optimizer_step_each_and_correct_against_the_first() -> None:
    corrected = dataclasses.replace(
        update_rule(), objective=dataclasses.replace(update_rule().objective, correction=Correction(2.0))
    )
    metrics, weights = _updated(batch(0), rule=corrected, minibatches=3)
    _, whole = _updated(batch(0), rule=corrected, minibatches=1)
    assert not same_weights(weights, whole)
    # Relative to the learner at the beginning of the step, regardless of the minibatches since.
    single, _ = _updated(batch(0), rule=corrected, minibatches=1)
    gap = "offpolicy/logprob_gap_mean"
    assert metrics[gap] == pytest.approx(single[gap], rel=1e-5)


def test_a_kl_penalty_is_relative_to_the_initial_model() -> None:
    penalised = dataclasses.replace(
        update_rule(), objective=dataclasses.replace(update_rule().objective, kl_coefficient=1.0)
    )
    learner = _build(rule=penalised, reference=True, learning_rate=1e-2, warmup_steps=0)
    assert learner.update(0, batch(0)).metrics["policy/kl"] == pytest.approx(0, abs=1e-6)
    assert learner.update(1, batch(1)).metrics["policy/kl"] > 1e-6
    learner.close()


def test_a_replaced_reference_is_the_learner_of_that_step_and_comes_back_with_a_checkpoint(
    tmp_path: Path,
) -> None:
    rule = update_rule()
    objective = dataclasses.replace(rule.objective, kl_coefficient=1.0)
    rule = dataclasses.replace(rule, objective=objective, reference_period=2)
    changes: dict[str, Any] = {"rule": rule, "reference": True, "learning_rate": 1e-2, "warmup_steps": 0}
    learner = _build(**changes)
    divergences = [learner.update(step, batch(step)).metrics["policy/kl"] for step in range(2)]
    learner.save(tmp_path)
    following = [dict(learner.update(step, batch(step)).metrics) for step in (2, 3)]
    learner.close()
    # The reference is the first model in steps 0 and 1, and the learner after step 1 in steps 2 and 3.
    assert divergences[0] == pytest.approx(0, abs=1e-6)
    assert divergences[1] > 1e-6
    assert following[0]["policy/kl"] == pytest.approx(0, abs=1e-6)
    assert following[1]["policy/kl"] > 1e-6

    resumed = _build(zero_stage=3, **changes)
    resumed.load(tmp_path)
    for step, expected in zip((2, 3), following, strict=True):
        got = resumed.update(step, batch(step)).metrics
        assert got["policy/kl"] == pytest.approx(expected["policy/kl"], rel=1e-4, abs=1e-7)
        assert got["policy/loss"] == pytest.approx(expected["policy/loss"], rel=1e-4, abs=1e-7)
    resumed.close()


def test_a_checkpoint_without_the_reference_that_it_needs_is_refused(tmp_path: Path) -> None:
    learner = _build()
    learner.save(tmp_path)
    learner.close()
    rule = dataclasses.replace(update_rule(), reference_period=2)
    other = _build(rule=rule, reference=True)
    with pytest.raises(CheckpointError, match=r"reference/.* is missing"):
        other.load(tmp_path)
    other.close()


def test_a_second_epoch_trains_on_the_same_rows_again() -> None:
    once, _ = _updated(batch(0))
    twice, weights = _updated(batch(0), epochs=2)
    _, single = _updated(batch(0))
    assert twice["learner/tokens"] == 2 * once["learner/tokens"]
    assert not same_weights(weights, single)


def test_a_penalty_in_the_reward_needs_no_pass_of_its_own_in_the_loss() -> None:
    rule = dataclasses.replace(update_rule(), reward_kl_coefficient=0.05, drop_uninformative=False)
    metrics, _ = _updated(batch(0), rule=rule, reference=True)
    plain, _ = _updated(batch(0), rule=dataclasses.replace(rule, reward_kl_coefficient=0.0))
    # The rollouts were not sampled from the model, so their divergence from it is not zero.
    assert abs(metrics["policy/kl"]) > 1e-3
    assert "policy/kl" not in plain
    assert metrics["policy/loss"] != pytest.approx(plain["policy/loss"], rel=1e-3)


def test_an_export_loads_in_plain_transformers_with_the_same_logits(tmp_path: Path) -> None:
    learner = _build(zero_stage=3)
    learner.update(0, batch(0))
    learner.export(tmp_path)
    trained = build("tiny_moe")
    trained.load_state_dict(published(learner))
    learner.close()

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.tensor([[1, 2, 3, 4]])
    torch.testing.assert_close(loaded(tokens).logits, trained.eval()(tokens).logits)
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == len(character_tokenizer(64))


def test_a_checkpoint_of_one_zero_stage_loads_at_every_other(tmp_path: Path) -> None:
    learner = _build(zero_stage=3)
    learner.update(0, batch(0))
    learner.save(tmp_path)
    weights = published(learner)
    expected = learner.update(1, batch(1)).metrics["policy/grad_norm"]
    learner.close()
    for stage in (0, 1, 2):
        other = _build(zero_stage=stage)
        other.load(tmp_path)
        assert same_weights(weights, published(other))
        assert other.update(1, batch(1)).metrics["policy/grad_norm"] == pytest.approx(expected, rel=1e-6)
        other.close()


def test_a_checkpoint_of_another_model_or_with_a_shard_missing_is_refused(tmp_path: Path) -> None:
    learner = _build()
    learner.save(tmp_path)
    other = _build(model="qwen3_moe")
    with pytest.raises(CheckpointError, match="the checkpoint has shape"):
        other.load(tmp_path)
    other.close()
    (tmp_path / "rank-0-of-1.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError):
        learner.load(tmp_path)
    learner.close()


def test_parameters_keep_their_names_in_a_shard(tmp_path: Path) -> None:
    learner = _build(zero_stage=2)
    learner.update(0, batch(0))
    learner.save(tmp_path)
    shard = load_file(tmp_path / "rank-0-of-1.safetensors")
    router = "model.layers.1.mlp.gate"
    assert torch.equal(shard[f"{router}.weight@0/master"].view(8, 32), published(learner)[f"{router}.weight"])
    assert shard[f"{router}.weight@0/exp_avg"].shape == (256,)
    assert shard[f"buffer/{router}.e_score_correction_bias"].abs().max() == pytest.approx(0.001)
    learner.close()


@pytest.mark.parametrize("zero_stage", also_long([1, 3], [2]))
def test_a_bfloat16_model_has_float32_masters_and_resumes_bit_for_bit(
    zero_stage: int, tmp_path: Path
) -> None:
    learner = _build(zero_stage=zero_stage, dtype=torch.bfloat16)
    single, _ = _updated(batch(0))
    assert learner.update(0, batch(0)).metrics["policy/loss"] == pytest.approx(
        single["policy/loss"], rel=0.05
    )
    learner.save(tmp_path)
    shard = load_file(tmp_path / "rank-0-of-1.safetensors")
    assert shard["model.norm.weight@0/master"].dtype == torch.float32
    unbroken = learner.update(1, batch(1))
    weights = published(learner)
    assert weights["model.norm.weight"].dtype == torch.bfloat16
    with pytest.raises(NonFiniteError):
        learner.update(2, spoilt(batch(2)))
    assert same_weights(weights, published(learner))

    learner.load(tmp_path)
    assert learner.update(1, batch(1)) == unbroken
    assert same_weights(weights, published(learner))
    learner.close()


def test_inexact_combinations_are_rejected_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"learner\.zero_stage: got 0, allowed: 1, 2 or 3"):
        _build(zero_stage=0, dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match=r"learner\.expert_parallel_size: got 2, allowed: a divisor of 1"):
        _build(expert_parallel_size=2)
