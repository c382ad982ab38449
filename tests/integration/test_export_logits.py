"""The exported model equals the learner's: two ranks train, save and report their logits; one process without
DeepSpeed exports the shards and compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from orchestrator.config.compose import conf_dir
from orchestrator.training.learner.deepspeed_learner import DeepSpeedLearner, PolicyModel
from orchestrator.training.learner.offline import read_weights
from orchestrator.training.learner.sharding.distributed import DistributedInit
from orchestrator.training.models.build import build_model, build_tokenizer
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.models.export import write_model
from tests.support.exactness_setting import STEPS, Case, batch, learner_config, update_rule
from tests.support.ranks import start_ranks, tcp_store

pytestmark = pytest.mark.slow

CASES = [Case("tiny_moe", 2, experts, stage) for experts in (1, 2) for stage in (1, 3)]
MODEL = ModelConfig.model_validate(yaml.safe_load((conf_dir() / "model" / "tiny_moe.yaml").read_text()))
PROMPT = torch.arange(7, 47).view(2, 20)


def _train_and_save(rank: int, port: int, cases: Sequence[Case], directory: str) -> None:
    torch.set_num_threads(1)
    for index, case in enumerate(cases):
        init = DistributedInit(rank, case.world_size, "gloo", "cpu", tcp_store(rank, case.world_size, port))
        trainee = PolicyModel(build_model(MODEL, 0), build_tokenizer(MODEL))
        config = learner_config(case, "adamw")
        learner = DeepSpeedLearner(init, config, update_rule(), trainee, STEPS)
        for step in range(2):
            learner.update(step, batch(step))
        folder = Path(directory) / str(index)
        folder.mkdir(exist_ok=True)
        learner.save(folder)
        with torch.no_grad():
            forward = learner._zero.forward  # pyright: ignore[reportPrivateUsage] - nothing else gives logits
            logits = forward(input_ids=PROMPT, use_cache=False).logits
        if rank == 0:
            torch.save(logits, folder / "logits.pt")
        learner.close()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards")
    start_ranks(2, _train_and_save, CASES, str(path))
    return path


@pytest.mark.parametrize(
    "index", range(len(CASES)), ids=[f"ep{c.expert_parallel_size}-zero{c.zero_stage}" for c in CASES]
)
def test_the_exported_model_has_the_learners_logits(index: int, directory: Path, tmp_path: Path) -> None:
    shards = directory / str(index)
    write_model(MODEL, 0, read_weights(shards), tmp_path / "model")

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")

    logits, start = torch.load(shards / "logits.pt"), build_model(MODEL, 0)
    with torch.no_grad():
        torch.testing.assert_close(model(PROMPT).logits, logits, rtol=0, atol=1e-6)
        assert (start(PROMPT).logits - logits).abs().max() > 1e-3, "it was trained"
