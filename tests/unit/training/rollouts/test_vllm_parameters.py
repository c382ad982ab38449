"""How the vLLM engine translates models, configs and sampling parameters; nothing here needs vLLM."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from orchestrator.config.compose import compose
from orchestrator.errors import ConfigError
from orchestrator.launch.checks import check_engines
from orchestrator.training.models.build import build_model, build_tokenizer
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.records import SamplingParams
from orchestrator.training.rollouts.engines import ENGINES
from orchestrator.training.rollouts.engines.vllm import check
from orchestrator.training.rollouts.engines.vllm.launch import (
    engine_arguments,
    environment_variables,
    output_to_log,
)
from orchestrator.training.rollouts.engines.vllm.model_folder import (
    declared_stops,
    model_folder,
    read_config,
)
from orchestrator.training.rollouts.engines.vllm.sampling import rollout_seed, vllm_parameters
from orchestrator.training.rollouts.engines.vllm.weights import stage
from orchestrator.training.rollouts.engines.vllm.worker import EMBEDDING, HEAD, checkpoint_tensors
from tests.fakes.chat_models import chat_tokenizer, write_llama
from tests.support.small_model import small_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def model_in(folder: Path) -> ModelConfig:
    words = [f"model.path={folder}", "model.context=64", "rollout.max_new_tokens=16"]
    return compose("grpo", ["model=pretrained", *words]).model


@pytest.fixture
def llama(tmp_path: Path) -> ModelConfig:
    return model_in(write_llama(tmp_path / "llama", chat_tokenizer()))


def test_a_rollout_has_its_own_seed_whatever_else_is_sampled() -> None:
    seeds = {(group, member): rollout_seed(7, group, member) for group in range(50) for member in range(8)}
    assert len(set(seeds.values())) == 400
    assert all(0 <= seed < 1 << 63 for seed in seeds.values())
    assert rollout_seed(8, 0, 0) != seeds[0, 0] == rollout_seed(7, 0, 0)


def test_every_sampling_parameter_reaches_vllm() -> None:
    sampling = SamplingParams(
        0.7, 0.9, 99, 5, top_k=20, min_p=0.1, repetition_penalty=1.2, stop=("END",), min_new_tokens=4
    )
    found = vllm_parameters(sampling, 16, {9, 2}, seed=11)
    expected: dict[str, Any] = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "stop": ["END"],
        "stop_token_ids": [2, 9],
        "min_tokens": 4,
        "max_tokens": 16,
        "seed": 11,
        "logprobs": 0,
        "detokenize": True,
    }
    assert expected.items() <= found.items()
    assert found["ignore_eos"], "the tokens that end a rollout are ours, not those of the model's config"
    plain = vllm_parameters(SamplingParams(1.0, 1.0, 99, 5, min_new_tokens=30), 16, {2}, seed=0)
    assert (plain["detokenize"], plain["min_tokens"]) == (False, 16), "the context may leave less room"


def test_options_and_defaults_become_arguments_of_the_engine(llama: ModelConfig, tmp_path: Path) -> None:
    rollout = compose("grpo", ["rollout.engine=vllm", "rollout.max_batch_rows=32"]).rollout
    on_cpu = engine_arguments(llama, rollout, tmp_path, CPU, seed=3)
    assert (on_cpu["max_num_seqs"], on_cpu["max_model_len"], on_cpu["dtype"]) == (32, 64, "bfloat16")
    assert (on_cpu["load_format"], on_cpu["logprobs_mode"]) == ("dummy", "processed_logprobs")
    assert (on_cpu["enforce_eager"], on_cpu["kv_cache_memory_bytes"], on_cpu["block_size"]) == (
        True,
        1 << 30,
        32,
    )
    on_gpu = engine_arguments(llama, rollout, tmp_path, GPU, seed=3)
    assert (on_gpu["enforce_eager"], on_gpu["kv_cache_memory_bytes"], on_gpu["block_size"]) == (
        False,
        None,
        None,
    )
    options = {"tensor_parallel_size": 2, "max_batched_tokens": 4096, "eager": True, "block_size": 16}
    chosen = engine_arguments(
        llama, rollout.model_copy(update={"engine_options": options}), tmp_path, GPU, seed=3
    )
    assert (chosen["tensor_parallel_size"], chosen["max_num_batched_tokens"]) == (2, 4096)
    assert (chosen["enforce_eager"], chosen["block_size"]) == (True, 16)
    assert chosen["distributed_executor_backend"] == "mp", "its processes stay in the worker's slot"


def test_prompts_are_read_whole_on_cpus(llama: ModelConfig, tmp_path: Path) -> None:
    rollout = compose("grpo", ["rollout.engine=vllm"]).rollout
    assert engine_arguments(llama, rollout, tmp_path, CPU, seed=3)["enable_chunked_prefill"] is False
    assert engine_arguments(llama, rollout, tmp_path, GPU, seed=3)["enable_chunked_prefill"] is None
    small = rollout.model_copy(update={"engine_options": {"max_batched_tokens": 63}})
    with pytest.raises(ConfigError, match=r"max_batched_tokens: got 63.*model\.context \(64\)"):
        engine_arguments(llama, small, tmp_path, CPU, seed=3)
    assert engine_arguments(llama, small, tmp_path, GPU, seed=3)["max_num_batched_tokens"] == 63


def test_the_environment_has_precedence_except_for_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    rollout = compose("grpo", ["rollout.threads=2"]).rollout
    found = environment_variables(rollout)
    assert (found["OMP_NUM_THREADS"], found["VLLM_LOGGING_LEVEL"]) == ("2", "DEBUG")
    assert found["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environment_variables(rollout.model_copy(update={"threads": 0}))["OMP_NUM_THREADS"] == "9"


def test_what_vllms_processes_print_is_in_the_workers_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def say(number: int) -> None:
        subprocess.run(
            [sys.executable, "-c", f"import os; os.write({number}, b'from {number};')"], check=True
        )

    with (tmp_path / "rollout-0.log").open("a") as log:
        monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(log)])
        with output_to_log():
            say(1)
            say(2)
        say(2)
    assert (tmp_path / "rollout-0.log").read_text() == "from 1;from 2;"


def test_stop_tokens_are_those_that_the_loaded_model_declares(llama: ModelConfig) -> None:
    assert llama.path is not None
    architecture = read_config(llama)
    assert declared_stops(llama, architecture) == build_model(llama, 0).generation_config.eos_token_id
    GenerationConfig(eos_token_id=[2, 4]).save_pretrained(llama.path)
    assert declared_stops(llama, architecture) == [2, 4]
    assert build_model(llama, 0).generation_config.eos_token_id == [2, 4]
    (Path(llama.path) / "generation_config.json").unlink()
    assert declared_stops(llama, architecture) == build_model(llama, 0).generation_config.eos_token_id


def test_a_folder_of_the_model_is_used_as_it_is(llama: ModelConfig, tmp_path: Path) -> None:
    folder = model_folder(llama, read_config(llama), build_tokenizer(llama), tmp_path / "scratch")
    assert folder == Path(str(llama.path))
    assert not (tmp_path / "scratch").exists()


def test_other_models_get_a_folder_without_weights(llama: ModelConfig, tmp_path: Path) -> None:
    elsewhere = llama.model_copy(update={"path": None})
    folder = model_folder(elsewhere, read_config(llama), build_tokenizer(llama), tmp_path / "scratch")
    copied = llama.model_copy(update={"path": str(folder)})
    assert read_config(copied).architectures == ["LlamaForCausalLM"]
    assert build_tokenizer(copied).get_vocab() == build_tokenizer(llama).get_vocab()
    assert not list(folder.glob("*.safetensors"))


def test_models_whose_updates_are_not_known_to_be_exact_are_refused(
    llama: ModelConfig, tmp_path: Path
) -> None:
    check(llama)
    with pytest.raises(ConfigError, match="vllm with a model of type deepseek_v3") as caught:
        check(small_model(64, 0.1))
    assert caught.value.key == "rollout.engine"
    assert caught.value.allowed == "vllm for models of type llama, qwen2, qwen3, or hf"
    gguf = compose("grpo", ["model=smollm2_135m"]).model
    check(gguf)
    with pytest.raises(ConfigError, match="type unknown"):
        check(gguf.model_copy(update={"architecture": {}}))


def test_a_run_without_the_environment_is_refused_before_it_starts(
    llama: ModelConfig, tmp_path: Path
) -> None:
    words = ["model=pretrained", f"model.path={llama.path}", "model.context=64", "rollout.max_new_tokens=16"]
    missing = f"cluster.environments.rollout={tmp_path}/nowhere/bin/python"
    with pytest.raises(ConfigError, match="`make engines`") as caught:
        check_engines(compose("grpo", ["rollout.engine=vllm", missing, *words]))
    assert caught.value.key == "cluster.environments.rollout"


def test_the_facts_say_what_the_rest_of_the_program_may_rely_on() -> None:
    facts = ENGINES.facts("vllm")
    assert facts.logprobs == "processed"
    assert not facts.repeatable_seeds
    assert facts.accelerators({"tensor_parallel_size": 4, "pipeline_parallel_size": 2}) == 8
    assert ENGINES.facts("hf").accelerators({}) == 1


def test_a_tied_embedding_arrives_once_under_its_own_name_in_memory_of_its_own() -> None:
    shared = torch.ones(2, 2)
    tensors = [(EMBEDDING, shared), ("model.norm.weight", torch.ones(2)), (HEAD, shared)]
    found = list(checkpoint_tensors(tensors, tied=True))
    assert [name for name, _ in found] == [EMBEDDING, "model.norm.weight"]
    assert found[0][1].data_ptr() != shared.data_ptr()
    assert [name for name, _ in checkpoint_tensors([(HEAD, shared)], tied=True)] == [EMBEDDING]
    assert len(list(checkpoint_tensors(tensors, tied=False))) == 3


def test_staged_memory_is_freed_when_reading_the_weights_fails() -> None:
    open_files = len(list(Path("/proc/self/fd").iterdir()))

    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.ones(1 << 20)
        raise OSError("the publish is gone")

    with pytest.raises(OSError, match="publish is gone"):
        stage(broken())
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files
