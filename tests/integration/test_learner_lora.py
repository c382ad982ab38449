"""LoRA on DeepSpeed: gradients compared with plain torch, merged weights, adapter-only checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from orchestrator.errors import CheckpointError, ConfigError
from orchestrator.training.learner.adapters import (
    adapters_off,
    add_adapters,
    has_adapters,
    merge_adapters,
    merged_from,
)
from orchestrator.training.learner.config import LoraSettings
from orchestrator.training.learner.deepspeed_learner import DeepSpeedLearner, PolicyModel
from orchestrator.training.learner.offline import read_weights
from orchestrator.training.learner.port import Learner
from orchestrator.training.learner.rows import AlgorithmSpec
from orchestrator.training.learner.sharding.distributed import DistributedInit
from orchestrator.training.models.characters import character_tokenizer
from orchestrator.training.tensors.buckets import unflatten
from tests.contracts.learner_contract import LearnerContract, published, same_weights
from tests.support.exactness_setting import Case, batch, learner_config, update_rule
from tests.support.lanes import also_long
from tests.support.moe_families import build
from tests.support.ranks import start_ranks, tcp_store

pytestmark = pytest.mark.slow

LORA = LoraSettings(rank=4, alpha=8, target_modules=("all-linear",))
TOKENS = torch.tensor([[1, 2, 3, 4, 5, 6, 7]])


def _adapted(name: str, lora: LoraSettings = LORA) -> PreTrainedModel:
    model = build(name)
    add_adapters(model, lora, seed=3)
    return model


def _rank(
    case: Case,
    rank: int = 0,
    port: int = 0,
    rule: AlgorithmSpec | None = None,
    model: PreTrainedModel | None = None,
    reference: PreTrainedModel | None = None,
    **changes: Any,
) -> DeepSpeedLearner:
    config = learner_config(case, "adamw").model_copy(update={"learning_rate": 1e-2, **changes})
    init = DistributedInit(rank, case.world_size, "gloo", "cpu", tcp_store(rank, case.world_size, port))
    trainee = PolicyModel(model or _adapted(case.model), character_tokenizer(64), reference)
    return DeepSpeedLearner(init, config, rule or update_rule(), trainee, 10)


class TestLearnerWithAdapters(LearnerContract):
    @pytest.fixture(params=also_long([3], [0, 1, 2]), ids="zero{}".format)
    def learner(self, request: pytest.FixtureRequest) -> Iterator[Learner]:
        learner = _rank(Case("tiny_moe", 1, 1, request.param))
        yield learner
        learner.close()


@pytest.mark.parametrize("name", ["tiny_moe", "qwen3_moe"])
def test_adapters_start_neutral_and_are_the_only_trained_parameters(name: str) -> None:
    plain, model = build(name), _adapted(name)
    assert torch.equal(plain(TOKENS).logits, model(TOKENS).logits)
    trained = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".lora_A." in key or ".lora_B." in key for key in trained)
    assert has_adapters(model)
    assert not has_adapters(plain)
    assert same_weights(dict(model.state_dict()), dict(_adapted(name).state_dict()))


def _randomised(name: str) -> PreTrainedModel:
    model = _adapted(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("name", ["tiny_moe", "qwen3_moe"])
def test_merged_and_unmerged_give_the_same_logits(name: str) -> None:
    model, merged = _randomised(name), build(name)
    start = merged(TOKENS).logits.clone()
    kept = model.state_dict(keep_vars=True).keys()
    buffers = [(key, buffer) for key, buffer in model.named_buffers() if key in kept]
    merged.load_state_dict(dict(merge_adapters([*model.named_parameters(), *buffers], model)))
    unmerged = model(TOKENS).logits
    torch.testing.assert_close(merged(TOKENS).logits, unmerged, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(start, unmerged, atol=1e-2)
    with adapters_off(model):
        assert torch.equal(model(TOKENS).logits, start)
    assert torch.equal(model(TOKENS).logits, unmerged)


def test_adapter_gradients_equal_those_of_plain_torch() -> None:
    """With G = dL/dW of the merged weight: dL/dA = s B^T G and dL/dB = s G A^T."""
    model, merged = _randomised("tiny_moe"), build("tiny_moe")
    merged.load_state_dict(dict(merge_adapters(model.named_parameters(), model)), strict=False)
    for each in (model, merged):
        each.train()(TOKENS, labels=TOKENS).loss.backward()
    scale = LORA.alpha / LORA.rank
    found = dict(model.named_parameters())
    checked = 0
    for name, parameter in merged.named_parameters():
        layer = name.removesuffix(".weight")
        if f"{layer}.base_layer.weight" not in found:
            continue
        a, b = (found[f"{layer}.lora_{letter}.default.weight"] for letter in "AB")
        assert parameter.grad is not None
        torch.testing.assert_close(a.grad, scale * b.detach().T @ parameter.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(b.grad, scale * parameter.grad @ a.detach().T, rtol=1e-4, atol=1e-6)
        assert found[f"{layer}.base_layer.weight"].grad is None
        checked += 1
    assert checked > 5


def test_missing_layers_are_rejected() -> None:
    wrong = LoraSettings(rank=2, alpha=4, target_modules=("no_such_proj",))
    with pytest.raises(ConfigError, match=r"learner\.lora\.target_modules: got no_such_proj"):
        add_adapters(build("tiny_moe"), wrong, seed=0)


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_a_kl_penalty_is_relative_to_the_model_without_its_adapters(zero_stage: int) -> None:
    """As relative to a second copy of the initial model."""
    objective = dataclasses.replace(update_rule().objective, kl_coefficient=1.0)
    rule = dataclasses.replace(update_rule(), objective=objective)
    found: list[list[dict[str, float]]] = []
    for reference in (None, build("tiny_moe")):
        learner = _rank(
            Case("tiny_moe", 1, 1, zero_stage), rule=rule, reference=reference, router_bias_update_speed=0.0
        )
        found.append([dict(learner.update(step, batch(step)).metrics) for step in range(3)])
        learner.close()
    alone, beside = found
    assert alone[0]["policy/kl"] == pytest.approx(0, abs=1e-6)
    assert alone[2]["policy/kl"] > 1e-7
    for one, other in zip(alone, beside, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-7)


def test_an_export_is_the_merged_model_and_loads_in_plain_transformers(tmp_path: Path) -> None:
    learner = _rank(Case("qwen3_moe", 1, 1, 3))
    learner.update(0, batch(0))
    learner.export(tmp_path)
    merged = build("qwen3_moe")
    merged.load_state_dict(published(learner))
    learner.close()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(TOKENS).logits, merged.eval()(TOKENS).logits)
    assert not torch.equal(build("qwen3_moe").eval()(TOKENS).logits, merged(TOKENS).logits)


def test_a_bfloat16_model_has_bfloat16_adapters_with_float32_masters(tmp_path: Path) -> None:
    model = build("tiny_moe").bfloat16()
    add_adapters(model, LORA, seed=3)
    learner = _rank(Case("tiny_moe", 1, 1, 2), model=model)
    before = published(learner)
    learner.update(0, batch(0))
    after = published(learner)
    assert after["model.layers.0.self_attn.o_proj.weight"].dtype == torch.bfloat16
    assert not same_weights(before, after)
    learner.save(tmp_path)
    learner.close()
    saved = load_file(tmp_path / "rank-0-of-1.safetensors")
    assert {tensor.dtype for key, tensor in saved.items() if key.endswith("/master")} == {torch.float32}


def _train(rank: int, port: int, cases: Sequence[Case], directory: str) -> None:
    torch.set_num_threads(1)
    for case in cases:
        folder = Path(directory) / str(case.zero_stage)
        learner = _rank(case, rank, port)
        if rank == 0:
            folder.mkdir()
        torch.distributed.barrier()
        for step in range(2):
            learner.update(step, batch(step))
        learner.save(folder)
        weights = {name: tensor.clone() for name, tensor in unflatten(learner.weights())}
        norm = learner.update(2, batch(2)).metrics["policy/grad_norm"]
        if rank == 0:
            torch.save({"weights": weights, "norm": norm}, folder / "expected.pt")
        learner.close()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("lora")
    start_ranks(2, _train, [Case("tiny_moe", 2, 1, stage) for stage in (1, 2, 3)], str(directory))
    return directory


@pytest.mark.parametrize("zero_stage", also_long([1, 3], [2]))
def test_two_ranks_save_only_adapters_and_one_rank_continues(zero_stage: int, two_ranks: Path) -> None:
    folder = two_ranks / str(zero_stage)
    expected: dict[str, Any] = torch.load(folder / "expected.pt")
    saved: dict[str, Tensor] = {}
    for path in folder.glob("rank-*.safetensors"):
        saved |= load_file(path)
    assert all(".lora_" in key for key in saved if not key.startswith(("rng/", "buffer/")))
    single = _rank(Case("tiny_moe", 1, 1, 1))
    fresh = published(single)
    single.load(folder)
    assert same_weights(published(single), expected["weights"])
    assert not same_weights(fresh, expected["weights"])
    assert single.update(2, batch(2)).metrics["policy/grad_norm"] == pytest.approx(expected["norm"], rel=1e-5)
    single.close()


def test_adapters_are_not_loaded_into_a_model_without_or_of_another_rank(two_ranks: Path) -> None:
    other = LoraSettings(rank=2, alpha=8, target_modules=("all-linear",))
    for model in (build("tiny_moe"), _adapted("tiny_moe", other)):
        learner = _rank(Case("tiny_moe", 1, 1, 1), model=model)
        with pytest.raises(CheckpointError, match="the checkpoint has shape"):
            learner.load(two_ranks / "1")
        learner.close()


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_adapters_work_with_activation_checkpointing_and_an_offloaded_optimizer(zero_stage: int) -> None:
    found: list[tuple[dict[str, float], dict[str, Tensor]]] = []
    saving_memory: dict[str, Any] = {"activation_checkpointing": True, "offload": "optimizer"}
    for changes in (dict[str, Any](), saving_memory):
        learner = _rank(Case("tiny_moe", 1, 1, zero_stage), **changes)
        found.append((dict(learner.update(0, batch(0)).metrics), published(learner)))
        learner.close()
    (plain, weights), (saving, same) = found
    assert saving == pytest.approx(plain, rel=1e-6)
    for name, tensor in weights.items():
        torch.testing.assert_close(same[name], tensor, rtol=1e-5, atol=1e-7, msg=name)


def test_a_checkpoint_of_adapters_is_exported_merged(two_ranks: Path) -> None:
    folder = two_ranks / "3"
    expected: dict[str, Tensor] = torch.load(folder / "expected.pt")["weights"]
    assert same_weights(dict(merged_from(build("tiny_moe"), LORA, 3, read_weights(folder))), expected)
    with pytest.raises(CheckpointError, match="lacks"):
        list(merged_from(build("tiny_moe"), LORA, 3, list(read_weights(folder))[1:]))
    with pytest.raises(CheckpointError, match="no weight"):
        list(merged_from(build("qwen3_moe"), LORA, 3, read_weights(folder)))
