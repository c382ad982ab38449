"""Two learner ranks over gloo: exact against one plain process at every ZeRO stage, and resized through a
checkpoint. One pair of processes does everything: importing DeepSpeed takes longer than training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.learner_exactness import (
    OPTIMIZERS,
    Case,
    OptimizerName,
    Training,
    batch,
    build_rank,
    compare,
    rank_main,
    read_results,
    start_ranks,
    train_plainly,
)
from orchestrator.errors import NonFiniteError
from orchestrator.training.buckets import unflatten
from tests.contracts.learner_contract import spoilt

pytestmark = pytest.mark.slow

_CASES = [Case("tiny_moe", 2, 1, stage) for stage in range(4)]


def _two_ranks(rank: int, cases: Sequence[Case], port: int, directory: str) -> None:
    rank_main(rank, cases, port, directory)
    _train_save_and_refuse(rank, port, Path(directory))


def _train_save_and_refuse(rank: int, port: int, directory: Path) -> None:
    """Stage 2: two steps and a checkpoint; then a batch of which half is spoilt, and the same step again."""
    learner = build_rank(Case("tiny_moe", 2, 1, 2), rank, port)
    reports = [learner.update(step, batch(step)) for step in range(2)]
    learner.save(directory)
    weights = {name: tensor.clone() for name, tensor in unflatten(learner.weights())}
    healthy, sick = batch(2)
    with pytest.raises(NonFiniteError, match="policy/loss is"):
        learner.update(2, [healthy, *spoilt([sick])])
    reports.append(learner.update(2, batch(2)))
    (directory / f"rank-{rank}.json").write_text(json.dumps([dict(report.metrics) for report in reports]))
    if rank == 0:
        torch.save(weights, directory / "weights.pt")
    learner.close()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    start_ranks(2, _two_ranks, _CASES, str(path))
    return path


@pytest.fixture(scope="module")
def metrics(directory: Path) -> list[list[dict[str, float]]]:
    return [json.loads((directory / f"rank-{rank}.json").read_text()) for rank in range(2)]


def test_two_ranks_are_exact_at_every_zero_stage(directory: Path) -> None:
    plain: dict[OptimizerName, Training] = {name: train_plainly("tiny_moe", name) for name in OPTIMIZERS}
    learned = read_results(len(_CASES), str(directory))
    found = [compare(case, plain, got) for case, got in zip(_CASES, learned, strict=True)]
    assert [row for row in found if not row.exact] == []


def test_all_ranks_report_the_same_metrics(metrics: list[list[dict[str, float]]]) -> None:
    assert metrics[0] == metrics[1]


def test_one_rank_goes_on_from_the_checkpoint_of_two(
    directory: Path, metrics: list[list[dict[str, float]]]
) -> None:
    """At another ZeRO stage, too; and a refused step left no trace in the two ranks' next one."""
    single = build_rank(Case("tiny_moe", 1, 1, 3), 0, 0)
    single.load(directory)
    restored = dict(unflatten(single.weights()))
    for name, tensor in torch.load(directory / "weights.pt").items():
        assert torch.equal(restored[name], tensor), name
    resumed = single.update(2, batch(2)).metrics
    single.close()
    for name in ("policy/loss", "policy/grad_norm", "moe/bias_norm"):
        assert resumed[name] == pytest.approx(metrics[0][2][name], rel=1e-5)
