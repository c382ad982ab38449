"""Two learner ranks over gloo are exact compared with one plain process at every ZeRO stage, with experts on
every rank and sharded over both, and when resized through checkpoints. One pair of processes runs everything,
because importing DeepSpeed takes longer than training.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.errors import NonFiniteError
from orchestrator.training.learner.deepspeed_learner import DeepSpeedLearner
from orchestrator.training.records import BatchPart
from orchestrator.training.tensors.buckets import Bucket, joined, unflatten
from orchestrator.training.tensors.write_plan import WritePlan
from tests.contracts.learner_contract import spoilt
from tests.support.exactness_ranks import (
    Difference,
    build_rank,
    compare,
    rank_main,
    read_results,
    steps_of,
)
from tests.support.exactness_setting import OPTIMIZERS, Case, OptimizerName, Training, batch, learner_config
from tests.support.plain_training import train_plainly
from tests.support.ranks import start_ranks

pytestmark = pytest.mark.slow

_CASES = [
    Case("tiny_moe", 2, 1, 1),
    Case("tiny_moe", 2, 1, 3),
    Case("tiny_moe", 2, 2, 0),
    Case("tiny_moe", 2, 2, 2),
    Case("deepseek_v3", 2, 2, 2),
    Case("tiny_moe", 2, 2, 1, "all_gspo"),
]
"""A sample of the shapes, with every ZeRO stage. The others are in `_OTHERS`."""
_STAGES = range(4)
_OTHERS = [
    case
    for case in (
        *(Case("tiny_moe", 2, size, stage) for size in (1, 2) for stage in _STAGES),
        *(Case(model, 2, 2, 2) for model in ("deepseek_v2", "qwen3_moe", "mixtral", "granite_moe")),
        *(Case("tiny_moe", 2, 1 + stage % 2, stage, "all_gspo") for stage in _STAGES),
        *(
            Case("tiny_moe", 2, 2, 1, objective)
            for objective in ("cispo", "entropy", "epochs", "kl_in_reward", "masked_is", "overlong_filtering")
        ),
        *(Case("tiny_moe", 2, 2, stage, "reference_period") for stage in _STAGES),
        *(Case("tiny_moe", 2, 1 + stage % 2, stage, "gae") for stage in _STAGES),
    )
    if case not in _CASES
]
_SAVED = [Case("tiny_moe", 2, 1, 2), Case("tiny_moe", 2, 2, 1), Case("tiny_moe", 2, 2, 3)]
"""Shapes that save a checkpoint, and that continue from one of a single rank."""
_UNUSED = {"mlflow", "torch._inductor.compile_fx"}
"""Modules that DeepSpeed imports for its autotuner and its Muon optimizer."""


def _weights(learner: DeepSpeedLearner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in unflatten(learner.weights())}


def _written_together(plan: WritePlan) -> dict[str, Tensor]:
    """The bytes that the ranks write into zeroed memory, added up, so that a byte
    written by two ranks would show.
    """
    memory = [torch.zeros(plan.bucket_bytes, dtype=torch.uint8) for _ in plan.buckets]
    plan.write([room.numpy() for room in memory])
    for room in memory:
        dist.all_reduce(room)
    found = zip(plan.contents, memory, strict=True)
    buckets = [Bucket(pieces, room.numpy()[:used]) for (pieces, used), room in found]
    return {name: tensor.clone() for name, tensor in unflatten(buckets)}


def _largest_message(learner: DeepSpeedLearner) -> int:
    """Maximum bytes of other ranks' experts that this rank holds at once while weights are published."""
    sizes, receive = [0], dist.recv

    def watched(tensor: Tensor, *arguments: Any, **keywords: Any) -> Any:
        sizes.append(tensor.nbytes)
        return receive(tensor, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "recv", watched)
        for _ in learner.weights():
            pass
    return max(sizes)


def _two_steps(learner: DeepSpeedLearner) -> list[dict[str, float]]:
    """The third step, and a fourth in which every token is routed as by its sampler."""
    return [
        dict(learner.update(2, batch(2)).metrics),
        dict(learner.update(3, _with_routes(batch(3))).metrics),
    ]


def _with_routes(parts: Sequence[BatchPart]) -> list[BatchPart]:
    """Two different experts of 8 for each token in the single layer of experts. The last token of
    every third rollout was not read.
    """
    draw = np.random.default_rng(0)
    routed: list[BatchPart] = []
    for part in parts:
        block = part.rollouts
        counts = (len(block.prompt_tokens), len(block.tokens))
        first = [draw.integers(0, 8, (count, 1, 1)) for count in counts]
        prompt_routes, routes = (
            np.concatenate([each, (each + draw.integers(1, 8, each.shape)) % 8], axis=2).astype(np.int16)
            for each in first
        )
        routes[block.offsets[1::3] - 1] = -1
        rollouts = replace(block, prompt_routes=prompt_routes, routes=routes)
        routed.append(replace(part, rollouts=rollouts))
    return routed


def _two_ranks(rank: int, port: int, cases: Sequence[Case], directory: str) -> None:
    rank_main(rank, port, cases, directory)
    for index, case in enumerate(_SAVED):
        _train_save_and_refuse(case, rank, port, Path(directory) / f"saved-{index}")
        _go_on(case, rank, port, Path(directory) / "single", Path(directory) / f"resumed-{index}")
    (Path(directory) / f"norm-{rank}").write_text(str(_norm_by_deepspeed(rank)))
    (Path(directory) / f"unused-{rank}.json").write_text(json.dumps(sorted(_UNUSED & sys.modules.keys())))


def _norm_by_deepspeed(rank: int) -> float:
    """The norm of a gradient that is 3 on rank 0 and 4 on rank 1, like that of an expert."""
    from deepspeed.runtime.utils import clip_grad_norm_

    expert = torch.nn.Parameter(torch.zeros(1))
    expert.grad = torch.tensor([3.0 + rank])
    return float(clip_grad_norm_([expert], 1.0))


def _train_save_and_refuse(case: Case, rank: int, port: int, directory: Path) -> None:
    """Two steps and a checkpoint; then a batch of which half is corrupt, and the same step again."""
    directory.mkdir(exist_ok=True)
    learner = build_rank(case, rank, port)
    reports = [learner.update(step, batch(step)) for step in range(2)]
    learner.save(directory)
    weights = _weights(learner)
    healthy, sick = batch(2)
    with pytest.raises(NonFiniteError, match="policy/loss is"):
        learner.update(2, [healthy, *spoilt([sick])])
    reports.append(learner.update(2, batch(2)))
    (directory / f"rank-{rank}.json").write_text(json.dumps([dict(report.metrics) for report in reports]))
    if rank == 0:
        torch.save(weights, directory / "weights.pt")
    learner.close()


def _go_on(case: Case, rank: int, port: int, checkpoint: Path, directory: Path) -> None:
    """Continue from the first two steps, which were made by another number of ranks."""
    directory.mkdir(exist_ok=True)
    learner = build_rank(case, rank, port)
    plan = learner.write_plan()
    learner.load(checkpoint)
    weights, message = _weights(learner), _largest_message(learner)
    reports = _two_steps(learner)
    tensors = joined(learner._full_tensors.stream())  # pyright: ignore[reportPrivateUsage] - not by a plan
    gathered = {name: tensor.detach().clone() for name, tensor in tensors}
    together = None if plan is None else _written_together(plan)
    if rank == 0:
        torch.save((gathered, together), directory / "together.pt")
        (directory / "message").write_text(str(message))
        (directory / "reports.json").write_text(json.dumps(reports))
        torch.save(weights, directory / "weights.pt")
    learner.close()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    (path / "single").mkdir()
    single = build_rank(Case("tiny_moe", 1, 1, 1), 0, 0)
    for step in range(2):
        single.update(step, batch(step))
    single.save(path / "single")
    torch.save(_weights(single), path / "single" / "weights.pt")
    (path / "single" / "reports.json").write_text(json.dumps(_two_steps(single)))
    single.close()
    start_ranks(2, _two_ranks, _CASES, str(path))
    return path


def _differences(cases: Sequence[Case], directory: Path) -> list[Difference]:
    """Between what the ranks left in `directory` and one plain process."""
    plain: dict[tuple[str, str], dict[OptimizerName, Training]] = {}
    for case in cases:
        if (case.model, case.objective) not in plain:
            plain[case.model, case.objective] = {
                name: train_plainly(case.model, name, case.objective, steps_of(case)) for name in OPTIMIZERS
            }
    learned = read_results(len(cases), str(directory))
    return [
        compare(case, plain[case.model, case.objective], got)
        for case, got in zip(cases, learned, strict=True)
    ]


def test_two_ranks_are_exact_at_every_zero_stage(directory: Path) -> None:
    """With experts on both ranks and distributed, under a loss per token and under one per sequence."""
    differences = _differences(_CASES, directory)
    assert len(differences) == len(_CASES)
    assert [row for row in differences if not row.exact] == []


@pytest.mark.long
def test_two_ranks_are_exact_in_every_other_shape_and_model_family(tmp_path: Path) -> None:
    start_ranks(2, rank_main, _OTHERS, str(tmp_path))
    differences = _differences(_OTHERS, tmp_path)
    assert len(differences) == len(_OTHERS)
    assert [row for row in differences if not row.exact] == []


def test_deepspeed_averages_the_gradient_norms_of_ranks(directory: Path) -> None:
    """This is why stage 0 clips by itself: DeepSpeed's clipping is wrong if ranks hold different experts. If
    this test fails, the bug is fixed.
    """
    assert [float((directory / f"norm-{rank}").read_text()) for rank in range(2)] == [3.5, 3.5]  # not 5


def test_ranks_do_not_import_what_only_other_parts_of_deepspeed_use(directory: Path) -> None:
    assert [json.loads((directory / f"unused-{rank}.json").read_text()) for rank in range(2)] == [[], []]


@pytest.mark.parametrize("index", range(len(_SAVED)), ids=str)
def test_all_ranks_report_the_same_metrics(directory: Path, index: int) -> None:
    reports = [(directory / f"saved-{index}" / f"rank-{rank}.json").read_text() for rank in range(2)]
    assert json.loads(reports[0]) == json.loads(reports[1])


@pytest.mark.parametrize("index", range(len(_SAVED)), ids=str)
def test_one_rank_continues_from_the_checkpoint_of_two(directory: Path, index: int) -> None:
    """Also at another ZeRO stage; and a rejected step left no trace in the next step of the two ranks."""
    saved = directory / f"saved-{index}"
    single = build_rank(Case("tiny_moe", 1, 1, 3), 0, 0)
    single.load(saved)
    _assert_same_weights(_weights(single), torch.load(saved / "weights.pt"))
    resumed = single.update(2, batch(2)).metrics
    single.close()
    _assert_same_step(dict(resumed), json.loads((saved / "rank-0.json").read_text())[2])


@pytest.mark.parametrize("index", range(len(_SAVED)), ids=str)
def test_two_ranks_continue_from_the_checkpoint_of_one(directory: Path, index: int) -> None:
    single, resumed = directory / "single", directory / f"resumed-{index}"
    _assert_same_weights(torch.load(resumed / "weights.pt"), torch.load(single / "weights.pt"))
    reports = [json.loads((path / "reports.json").read_text()) for path in (resumed, single)]
    for got, expected in zip(*reports, strict=True):
        _assert_same_step(got, expected)


@pytest.mark.parametrize("index", range(len(_SAVED)), ids=str)
def test_weights_written_together_equal_those_gathered_by_rank_0(directory: Path, index: int) -> None:
    """With a plan from before a checkpoint was loaded and two steps were taken. Stage 3 has no plan."""
    gathered, together = torch.load(directory / f"resumed-{index}" / "together.pt")
    if _SAVED[index].zero_stage == 3:
        assert together is None
    else:
        _assert_same_weights(together, gathered)


def _four_ranks(rank: int, port: int, case: Case, directory: str) -> None:
    torch.set_num_threads(1)
    learner = build_rank(case, rank, port)
    learner.update(0, batch(0))
    plan = learner.write_plan()
    assert plan is not None
    gathered, together = _weights(learner), _written_together(plan)
    if rank == 0:
        torch.save((gathered, together), Path(directory) / "together.pt")
    learner.close()


@pytest.mark.long
def test_replicated_experts_are_written_once(tmp_path: Path) -> None:
    """All four ranks write a share of the rest."""
    start_ranks(4, _four_ranks, Case("tiny_moe", 4, 2, 1), str(tmp_path))
    gathered, together = torch.load(tmp_path / "together.pt")
    _assert_same_weights(together, gathered)


@pytest.mark.parametrize("index", range(len(_SAVED)), ids=str)
def test_rank_0_holds_at_most_one_bucket_of_other_ranks_experts(directory: Path, index: int) -> None:
    """Although one layer of them is larger."""
    case = _SAVED[index]
    config = learner_config(case, "adamw")
    shapes = [
        tensor.nbytes
        for name, tensor in torch.load(directory / "single" / "weights.pt").items()
        if ".experts." in name
    ]
    message = int((directory / f"resumed-{index}" / "message").read_text())
    assert max(shapes) // 2 > config.bucket_bytes
    assert message == (config.bucket_bytes if case.expert_parallel_size == 2 else 0)


def _assert_same_weights(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(got[name], tensor)] == []


def _assert_same_step(got: dict[str, float], expected: dict[str, float]) -> None:
    for name in ("policy/loss", "policy/grad_norm", "moe/bias_norm", "moe/expert_load_max_over_mean"):
        assert got[name] == pytest.approx(expected[name], rel=1e-5), name
