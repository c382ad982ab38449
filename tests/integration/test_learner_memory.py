"""Options that save memory without changing any number: activation checkpointing
and offloaded optimizer state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from orchestrator.training.learner.deepspeed_learner import DeepSpeedLearner, PolicyModel
from orchestrator.training.learner.port import Learner
from orchestrator.training.learner.routing import find_routers
from orchestrator.training.learner.sharding.distributed import DistributedInit
from orchestrator.training.models.characters import character_tokenizer
from orchestrator.training.tensors.buckets import unflatten
from tests.contracts.learner_contract import LearnerContract, published, same_weights
from tests.support.exactness_setting import Case, Training, batch, learner_config, update_rule
from tests.support.lanes import also_long
from tests.support.moe_families import build
from tests.support.ranks import start_ranks, tcp_store

pytestmark = pytest.mark.slow

STEPS = 3


def _rank(
    case: Case, rank: int = 0, port: int = 0, model: PreTrainedModel | None = None, **changes: Any
) -> DeepSpeedLearner:
    config = learner_config(case, "adamw").model_copy(update=changes)
    init = DistributedInit(rank, case.world_size, "gloo", "cpu", tcp_store(rank, case.world_size, port))
    trainee = PolicyModel(model or build(case.model), character_tokenizer(64))
    return DeepSpeedLearner(init, config, update_rule(), trainee, 10)


class TestOffloadedLearner(LearnerContract):
    @pytest.fixture(params=also_long([3], [1, 2]), ids="zero{}".format)
    def learner(self, request: pytest.FixtureRequest) -> Iterator[Learner]:
        learner = _rank(Case("tiny_moe", 1, 1, request.param), offload="optimizer")
        yield learner
        learner.close()


class _Saved:
    """Bytes of the tensors that a forward pass keeps for its backward pass, each storage once."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self._sizes.values())

    def __enter__(self) -> _Saved:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)


@pytest.mark.parametrize("model", ["tiny_moe", "qwen3_moe"])
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_activation_checkpointing_changes_no_bit(zero_stage: int, model: str) -> None:
    """Neither weights nor metrics change: the expert loads are those of the first forward pass alone."""
    found: list[tuple[list[dict[str, float]], dict[str, Tensor]]] = []
    for again in (False, True):
        learner = _rank(Case(model, 1, 1, zero_stage), activation_checkpointing=again)
        reports = [dict(learner.update(step, batch(step)).metrics) for step in range(STEPS)]
        found.append((reports, published(learner)))
        learner.close()
    (plain, weights), (checkpointed, same) = found
    assert checkpointed == plain
    assert plain[0]["moe/router_entropy"] > 0
    assert same_weights(weights, same)


def test_activation_checkpointing_computes_layers_twice_and_saves_memory() -> None:
    """The second pass of a router is not counted, although it happens."""
    passes: dict[bool, int] = {}
    kept: dict[bool, int] = {}
    for again in (False, True):
        model = build("tiny_moe")
        (router,) = find_routers(model).values()
        learner = _rank(
            Case("tiny_moe", 1, 1, 1), model=model, activation_checkpointing=again, micro_batch_tokens=10_000
        )
        seen: list[None] = []
        router.register_forward_hook(lambda *_, seen=seen: seen.append(None))
        with _Saved() as saved:
            learner.update(0, batch(0))
        passes[again], kept[again] = len(seen), saved.bytes
        learner.close()
    assert passes[True] == 2 * passes[False]
    assert kept[True] < kept[False] / 2


_CASES = [Case("tiny_moe", 2, experts, stage) for experts in (1, 2) for stage in (1, 2, 3)]
_WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "offload": {"offload": "optimizer"},
    "checkpointing": {"activation_checkpointing": True},
}


def _each_way(rank: int, port: int, cases: Sequence[Case], directory: str) -> None:
    torch.set_num_threads(1)
    for case in cases:
        for way, changes in _WAYS.items():
            learner = _rank(case, rank, port, **changes)
            reports = [learner.update(step, batch(step)).metrics for step in range(STEPS)]
            weights = {name: tensor.clone() for name, tensor in unflatten(learner.weights())}
            if rank == 0:
                losses, norms = (
                    [report[f"policy/{key}"] for report in reports] for key in ("loss", "grad_norm")
                )
                torch.save(asdict(Training(losses, norms, weights)), _file(Path(directory), case, way))
            learner.close()


def _file(directory: Path, case: Case, way: str) -> Path:
    return directory / f"ep{case.expert_parallel_size}-zero{case.zero_stage}-{way}.pt"


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("memory")
    start_ranks(2, _each_way, _CASES, str(directory))
    return directory


@pytest.mark.parametrize("way", ["offload", "checkpointing"])
@pytest.mark.parametrize("case", _CASES, ids=str)
def test_two_ranks_are_exact_with_each_memory_option(case: Case, way: str, two_ranks: Path) -> None:
    """Also if each rank has its own experts."""
    plain, saving = (Training(**torch.load(_file(two_ranks, case, name))) for name in ("plain", way))
    assert saving.losses == pytest.approx(plain.losses, rel=1e-6, abs=1e-8)
    assert saving.grad_norms == pytest.approx(plain.grad_norms, rel=1e-6)
    for name, tensor in plain.parameters.items():
        far = (tensor - saving.parameters[name]).norm() / tensor.norm().clamp(min=1e-12)
        assert far <= 1e-6, name


@pytest.mark.parametrize("zero_stage", also_long([1, 3], [2]))
def test_checkpoints_do_not_depend_on_the_place_of_the_optimizer(zero_stage: int, tmp_path: Path) -> None:
    case = Case("tiny_moe", 1, 1, zero_stage)
    learner = _rank(case, offload="optimizer")
    learner.update(0, batch(0))
    learner.save(tmp_path)
    weights = published(learner)
    expected = learner.update(1, batch(1)).metrics["policy/grad_norm"]
    learner.close()
    for offload in ("none", "optimizer"):
        other = _rank(case, offload=offload)
        other.load(tmp_path)
        assert same_weights(weights, published(other))
        assert other.update(1, batch(1)).metrics["policy/grad_norm"] == pytest.approx(expected, rel=1e-6)
        other.close()
