"""A pretrained model from an installed package answers, trains and exports like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from orchestrator.training.models import folder
from orchestrator.training.models.build import build_model, build_tokenizer
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.prompts.chat_template import render_prompt
from orchestrator.training.records import Prompt, SamplingParams
from orchestrator.training.rollouts.engines.hf.sampler import HFSampler
from orchestrator.training.rollouts.stepped import StepEngine
from tests.support.engines import generate

CONF = Path(__file__).parents[2] / "conf" / "model" / "smollm2_135m.yaml"


@pytest.mark.long
@pytest.mark.slow
def test_smollm2_answers_a_sum_and_its_export_gives_the_same_logits(tmp_path: Path):
    config = ModelConfig.model_validate(yaml.safe_load(CONF.read_text()))
    model, tokenizer = build_model(config, seed=0), build_tokenizer(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert all(parameter.requires_grad for parameter in model.parameters())

    ids = render_prompt(tokenizer, "What is 2+3?")
    assert str(tokenizer.decode(ids)).endswith("What is 2+3?<|im_end|>\n<|im_start|>assistant\n")
    folder.save(model, tokenizer, tmp_path)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        batch = torch.tensor([ids])
        assert torch.equal(exported(batch).logits, model(batch).logits)

    sampler = HFSampler(
        model, tokenizer, config.context, max_batch_rows=4, device=torch.device("cpu"), record_routes=False
    )
    prompt = Prompt("sum/train/0", "What is 2+3?", {})
    block = generate(StepEngine(sampler), [0], [prompt], 1, SamplingParams(0.0, 1.0, 16, 0))
    assert block.texts == ("2 + 3 = 5",)
