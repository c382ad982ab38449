"""Plans: which jobs fit, and how time and cost scale with the work."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from orchestrator.capacity.accelerators import Range, accelerator_of
from orchestrator.capacity.flops import training_flops
from orchestrator.capacity.job import CHARACTERS, Job, read_job
from orchestrator.capacity.parameters import total_parameters
from orchestrator.capacity.plan import Plan, plan_job
from orchestrator.capacity.step_time import learn_flops, touched_weights
from orchestrator.cli.app import run_command_line
from orchestrator.config.compose import compose
from orchestrator.errors import ConfigError
from orchestrator.training.models.characters import character_tokenizer

GPUS = ["cluster=gpu_split", "price_book=aws"]
GIB = 2.0**30


def job(*overrides: str, prompt: float = 100, response: float = 400) -> Job:
    return read_job(compose("grpo", overrides), (prompt, prompt), response)


def planned(found: Job) -> Plan:
    return plan_job(found, accelerator_of(found.config.cluster.sku), 8 * GIB)


def test_the_demo_model_fits_a_laptop() -> None:
    plan = planned(job(prompt=12, response=60))
    assert plan.feasible
    assert plan.gpus == 2
    assert plan.step_seconds.low < plan.step_seconds.expected < plan.step_seconds.high


@pytest.mark.slow
def test_a_job_that_does_not_fit_names_changes_that_would() -> None:
    ranks = [
        "learner.world_size=8",
        "rollout.workers=8",
        "rollout.max_new_tokens=512",
        "algorithm=grpo_token",
    ]
    found = job(*GPUS, "model=qwen3_30b_a3b", *ranks, "rollout.max_batch_rows=64", "learner.zero_stage=1")
    plan = planned(found)
    assert not plan.feasible
    (reason,) = plan.reasons
    assert "a learner rank needs" in reason
    overrides = reason.rpartition("): ")[2].split()
    assert all(text.startswith("learner.") for text in overrides)
    remedied = job(*GPUS, "model=qwen3_30b_a3b", *ranks, "rollout.max_batch_rows=64", *overrides)
    assert planned(remedied).feasible


@pytest.mark.slow
def test_a_model_too_large_for_a_rollout_worker_is_reported() -> None:
    plan = planned(job(*GPUS, "model=deepseek_v3", "rollout.max_new_tokens=1024"))
    assert any("rollout worker needs 1,3" in reason for reason in plan.reasons)


@pytest.mark.slow
def test_work_scales_with_prompts_and_a_reference_model_adds_a_forward_pass() -> None:
    once, twice = (job(f"rollout.prompts_per_step={count}", "algorithm=grpo_token") for count in (32, 64))
    assert learn_flops(twice, 400) == pytest.approx(2 * learn_flops(once, 400))
    referenced = job("rollout.prompts_per_step=32")
    assert referenced.has_reference
    assert learn_flops(referenced, 400) == pytest.approx(4 / 3 * learn_flops(once, 400), rel=1e-9)


def test_colocated_steps_add_up_and_asynchronous_split_steps_overlap() -> None:
    together = planned(job())
    apart = planned(job("cluster.layout=split", "max_staleness=1"))
    step = together.steps[1]
    assert step.total == pytest.approx(step.generate + step.learn + step.sync)
    assert apart.steps[1].total == pytest.approx(max(step.generate, step.learn) + step.sync)


def test_a_cold_start_generates_nothing() -> None:
    found = read_job(compose("sft"), (12, 14), 60)
    assert planned(found).steps[1].generate == 0


def test_decoding_one_row_reads_its_experts_and_many_rows_read_all() -> None:
    shape = job("model=qwen3_30b_a3b", *GPUS).shape
    total = total_parameters(shape)
    one = touched_weights(shape, 1)
    assert one == pytest.approx(total.total - total.routed_experts * (1 - 8 / 128))
    assert touched_weights(shape, 512) == pytest.approx(total.total, rel=1e-6)


def test_models_from_scratch_have_the_vocabulary_of_the_character_tokenizer() -> None:
    assert len(character_tokenizer(64)) == CHARACTERS
    assert total_parameters(job().shape).total == 317_344
    assert total_parameters(job("model=smollm2_135m").shape).total == 134_515_008


@pytest.mark.slow
def test_an_existing_model_folder_is_read(tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "vocab_size": 10, "max_position_embeddings": 4096}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = job("model=pretrained", f"model.path={tmp_path}").shape
    assert (shape.hidden, shape.vocabulary) == (8, 10)
    with pytest.raises(ConfigError, match=r"model\.path"):
        job("model=pretrained", f"model.path={tmp_path / 'elsewhere'}")


def test_the_published_training_time_of_deepseek_v3_is_reproduced() -> None:
    """14.8T tokens in rows of 4096 in 2.664 million H800-hours (arXiv:2412.19437, table 1)."""
    from orchestrator.capacity.flops import Pass

    tokens = 14.8e12
    flops = training_flops(job("model=deepseek_v3", *GPUS).shape, Pass(tokens, tokens, 4096, False))
    peak = accelerator_of("h800").flops["bfloat16"]
    assert 0.33 < flops / (2.664e6 * 3600 * peak) < 0.40


def test_an_unknown_sku_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.sku: got abacus"):
        accelerator_of("abacus")
    assert accelerator_of("p4d.24xlarge").learn == Range(0.2, 0.35, 0.5)


@pytest.mark.slow
def test_the_command_prints_the_documented_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["plan", "r1_demo", "--json", "--prompt-tokens", "12"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document.keys() >= {
        "feasible",
        "reasons",
        "gpus",
        "memory_bytes_per_gpu",
        "step_seconds",
        "accelerator_hours",
        "amount",
    }
    assert document["feasible"] is True
    hours, amount = document["accelerator_hours"], document["amount"]
    stages = document["stages"]
    assert [stage["name"] for stage in stages] == ["cold_start", "grpo"]
    assert Decimal(hours["expected"]) == sum(
        Decimal(stage["accelerator_hours"]["expected"]) for stage in stages
    )
    # 0.0816 USD an hour buy two slots
    assert Decimal(amount["expected"]) == pytest.approx(
        Decimal(hours["expected"]) * Decimal("0.0408"), abs=Decimal("1e-5")
    )


@pytest.mark.slow
def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run_command_line(["plan", "grpo", "model=qwen3_30b_a3b", *GPUS, "rollout.max_new_tokens=1024"]) == 0
    )
    assert "NO" in capsys.readouterr().out
