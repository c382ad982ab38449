"""The sampler compared with plain forward passes of the same weights: log-probs,
order of rows, weights, limits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3NextConfig,
)

from orchestrator.config.compose import compose
from orchestrator.errors import ConfigError
from orchestrator.training.models import folder
from orchestrator.training.models.build import build_model
from orchestrator.training.models.characters import character_tokenizer
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.models.routers import RouteRecorder
from orchestrator.training.records import Finish, Prompt, RolloutBlock, SamplingParams
from orchestrator.training.rollouts.engines import ENGINES
from orchestrator.training.rollouts.engines.hf.attention import layer_kinds
from orchestrator.training.rollouts.engines.hf.sampler import HFSampler
from orchestrator.training.rollouts.stepped import StepEngine
from orchestrator.training.tensors.buckets import flatten, unflatten
from tests.support.engines import generate
from tests.support.small_model import small_model

CONTEXT = 128
TOKENIZER = character_tokenizer(CONTEXT)
CPU = torch.device("cpu")
TEXTS = ("7", "1+2=", "what is 3 - 3, please?", "12,7,5 -> 24:")
PROMPTS = tuple(Prompt(f"t/{index}", text, {}) for index, text in enumerate(TEXTS))
SAMPLING = SamplingParams(temperature=0.8, top_p=0.95, max_new_tokens=40, seed=11)


def deepseek(seed: int = 0) -> PreTrainedModel:
    return build_model(small_model(CONTEXT, initializer_range=0.2), seed)


def llama(seed: int = 0) -> PreTrainedModel:
    """Grouped key-value heads and tied embeddings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(TOKENIZER),
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                tie_word_embeddings=True,
                initializer_range=0.2,
                eos_token_id=2,
                max_position_embeddings=CONTEXT,
            )
        ).eval()


MODELS = {"deepseek": deepseek, "llama": llama}


def run(
    model: PreTrainedModel, sampling: SamplingParams = SAMPLING, rows: int = 32, group_size: int = 4
) -> RolloutBlock:
    engine = StepEngine(HFSampler(model, TOKENIZER, CONTEXT, rows, CPU, record_routes=False))
    return generate(engine, range(len(PROMPTS)), PROMPTS, group_size, sampling)


@torch.no_grad()
def recomputed(model: PreTrainedModel, block: RolloutBlock, temperature: float) -> np.ndarray:
    """The log-probs of all tokens, from one plain forward pass without a cache for each rollout."""
    found: list[torch.Tensor] = []
    for row in range(len(block)):
        group = row // block.group_size
        prompt = block.prompt_tokens[block.prompt_offsets[group] : block.prompt_offsets[group + 1]]
        answer = torch.from_numpy(block.tokens[block.offsets[row] : block.offsets[row + 1]]).long()
        ids = torch.cat([torch.from_numpy(prompt).long(), answer])
        logits = model(ids[None]).logits[0, len(prompt) - 1 : -1].float() / temperature
        found.append(torch.log_softmax(logits, -1).gather(1, answer[:, None])[:, 0])
    return torch.cat(found).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3, 6, 32])
@pytest.mark.parametrize("model", MODELS)
def test_log_probs_equal_those_of_a_plain_forward(model: str, rows: int):
    block = run(MODELS[model](), rows=rows)
    assert len(set(block.lengths.tolist())) > 3  # rows did come and go
    np.testing.assert_allclose(block.logprobs, recomputed(MODELS[model](), block, 0.8), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [3, 32])
@torch.no_grad()
def test_recorded_routes_equal_those_of_a_plain_forward(rows: int):
    engine = StepEngine(HFSampler(deepseek(), TOKENIZER, CONTEXT, rows, CPU, record_routes=True))
    block = generate(engine, range(len(PROMPTS)), PROMPTS, 4, SAMPLING)
    assert block.routes is not None
    assert block.prompt_routes is not None
    model = deepseek()
    recorder = RouteRecorder(model)
    for row in range(len(block)):
        asked = slice(*block.prompt_offsets[row // 4 : row // 4 + 2])
        answered = slice(*block.offsets[row : row + 2])
        ids = np.concatenate([block.prompt_tokens[asked], block.tokens[answered]])
        model(torch.from_numpy(ids).long()[None])
        recorded = np.concatenate([block.prompt_routes[asked], block.routes[answered]])
        assert np.array_equal(np.sort(recorded[:-1]), np.sort(recorder.take().numpy()[:-1]))
        assert (recorded[-1] == -1).all()  # the last token was sampled and never read


def test_a_dense_model_has_no_routes_to_record():
    engine = StepEngine(HFSampler(llama(), TOKENIZER, CONTEXT, 32, CPU, record_routes=True))
    assert generate(engine, [0], PROMPTS[:1], 2, SAMPLING).routes is None


@pytest.mark.gpu
@pytest.mark.parametrize("model", MODELS)
def test_log_probs_on_a_gpu_equal_those_of_a_plain_forward(model: str):
    engine = StepEngine(
        HFSampler(MODELS[model](), TOKENIZER, CONTEXT, 6, torch.device("cuda"), record_routes=False)
    )
    block = generate(engine, range(len(PROMPTS)), PROMPTS, 4, SAMPLING)
    np.testing.assert_allclose(block.logprobs, recomputed(MODELS[model](), block, 0.8), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_bfloat16_is_close_to_its_own_plain_forward(model: str):
    block = run(MODELS[model]().bfloat16(), rows=6)
    gap = np.abs(block.logprobs - recomputed(MODELS[model]().bfloat16(), block, 0.8))
    assert gap.mean() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_tokens_do_not_depend_on_the_number_of_cache_rows(model: str):
    blocks = [run(MODELS[model](), rows=rows) for rows in (1, 5, 32)]
    for block in blocks[1:]:
        assert block.texts == blocks[0].texts and block.finish.tolist() == blocks[0].finish.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_greedy_sampling_equals_generate(model: str):
    block = run(MODELS[model](), dataclasses.replace(SAMPLING, temperature=0.0), group_size=1)
    plain = MODELS[model]()
    for index, text in enumerate(TEXTS):
        ids = torch.tensor([TOKENIZER.encode(text)])
        expected = plain.generate(  # pyright: ignore[reportCallIssue]  (a mixin that types don't show)
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=40,
            eos_token_id=2,
            pad_token_id=0,
        )[0, ids.shape[1] :]
        assert block.tokens[block.offsets[index] : block.offsets[index + 1]].tolist() == expected.tolist()


def generated(model: PreTrainedModel, text: str, **options: Any) -> list[int]:
    """What transformers' `generate` gives, greedily."""
    ids = torch.tensor([TOKENIZER.encode(text)])
    found = model.generate(  # pyright: ignore[reportCallIssue]  (a mixin that types don't show)
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=40,
        pad_token_id=0,
        **options,
    )
    return found[0, ids.shape[1] :].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_greedy_with_penalties_and_stops_is_what_generate_gives(model: str):
    """Rows come and go between two batches of three."""
    options = {"repetition_penalty": 1.3, "min_new_tokens": 12}
    greedy = dataclasses.replace(SAMPLING, temperature=0.0, **options)
    plain = MODELS[model]()
    free = [generated(plain, text, eos_token_id=2, **options) for text in TEXTS]
    assert free != [generated(plain, text, eos_token_id=2) for text in TEXTS]
    end, stop = free[0][20], TOKENIZER.decode(free[1][14:16])
    sampling = dataclasses.replace(greedy, stop=(stop,), stop_token_ids=(end,))
    block = run(MODELS[model](), sampling, rows=3, group_size=1)
    stops: dict[str, Any] = {"eos_token_id": [2, end], "stop_strings": [stop], "tokenizer": TOKENIZER}
    for index, text in enumerate(TEXTS):
        expected = generated(plain, text, **options, **stops)
        assert block.tokens[slice(*block.offsets[index : index + 2])].tolist() == expected
    assert (block.lengths < [len(tokens) for tokens in free]).any()


@pytest.mark.slow
@pytest.mark.parametrize("rows", [3, 32])
def test_log_probs_are_the_model_s_own_whatever_is_penalised_or_truncated(rows: int):
    sampling = dataclasses.replace(
        SAMPLING,
        top_k=30,
        min_p=0.02,
        repetition_penalty=1.2,
        stop=("1", "<th"),
        stop_token_ids=(40,),
        min_new_tokens=5,
        thinking_token_budget=2,
    )
    block = run(deepseek(), sampling, rows=rows)
    assert len(set(block.lengths.tolist())) > 3
    np.testing.assert_allclose(block.logprobs, recomputed(deepseek(), block, 0.8), atol=1e-4)


def test_log_probs_after_a_forced_tag_are_the_model_s_own():
    prompts = [Prompt("t/0", "7<think>", {}), Prompt("t/1", "what is 3 - 3?<think>", {})]
    engine = StepEngine(HFSampler(deepseek(), TOKENIZER, CONTEXT, 5, CPU, record_routes=False))
    block = generate(engine, [0, 1], prompts, 4, dataclasses.replace(SAMPLING, thinking_token_budget=3))
    assert (~block.trainable).sum() >= 6
    np.testing.assert_allclose(block.logprobs, recomputed(deepseek(), block, 0.8), atol=1e-4)


def test_a_rollout_ends_when_the_context_is_full():
    prompt = Prompt("t/long", "1" * (CONTEXT - 3), {})
    engine = StepEngine(HFSampler(deepseek(), TOKENIZER, CONTEXT, 8, CPU, record_routes=False))
    block = generate(engine, [0], [prompt], 2, dataclasses.replace(SAMPLING, seed=2))
    assert block.lengths.tolist() == [3, 3] and block.finish.tolist() == [Finish.LENGTH] * 2


@pytest.mark.parametrize("model", MODELS)
def test_loaded_weights_replace_parameters_and_router_bias(model: str):
    engine = StepEngine(HFSampler(MODELS[model](), TOKENIZER, CONTEXT, 32, CPU, record_routes=False))
    other = MODELS[model](seed=1)
    for name, tensor in other.state_dict().items():
        if name.endswith("e_score_correction_bias"):
            tensor.copy_(torch.tensor([5.0, 0.0, 0.0, -5.0]))
    engine.sampler.load_weights(4, iter(other.state_dict().items()))
    block = generate(engine, range(len(PROMPTS)), PROMPTS, 4, SAMPLING)
    assert set(block.versions.tolist()) == {4}
    np.testing.assert_allclose(block.logprobs, recomputed(other, block, 0.8), atol=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_weights_from_small_buckets_are_written_in_place(model: str):
    """Most tensors are split; none of them is assembled in separate memory."""
    one, other = (
        StepEngine(HFSampler(MODELS[model](), TOKENIZER, CONTEXT, 32, CPU, record_routes=False))
        for _ in range(2)
    )
    state = list(MODELS[model](seed=1).state_dict().items())
    one.sampler.load_weights(1, state)
    arrived: list[torch.Tensor] = []
    tensors = unflatten(flatten(state, 512), other.sampler.weight_storage)
    other.sampler.load_weights(1, ((name, arrived.append(tensor) or tensor) for name, tensor in tensors))
    cut = [tensor for (_, whole), tensor in zip(state, arrived, strict=True) if whole.nbytes > 512]
    held = {
        storage.data_ptr() for name, _ in state if (storage := other.sampler.weight_storage(name)) is not None
    }
    assert cut and all(tensor.data_ptr() in held for tensor in cut)
    blocks = [generate(engine, range(len(PROMPTS)), PROMPTS, 2, SAMPLING) for engine in (one, other)]
    np.testing.assert_array_equal(blocks[0].logprobs, blocks[1].logprobs)


@pytest.mark.parametrize("left_out", ["lm_head.weight", "model.embed_tokens.weight"])
def test_a_tied_weight_may_have_either_name(left_out: str):
    engine = StepEngine(HFSampler(llama(), TOKENIZER, CONTEXT, 32, CPU, record_routes=False))
    other = llama(seed=1)
    state = other.state_dict()
    engine.sampler.load_weights(1, [(name, tensor) for name, tensor in state.items() if name != left_out])
    block = generate(engine, range(len(PROMPTS)), PROMPTS, 2, SAMPLING)
    np.testing.assert_allclose(block.logprobs, recomputed(other, block, 0.8), atol=1e-4)


def test_incomplete_or_foreign_weights_are_refused():
    engine = StepEngine(HFSampler(deepseek(), TOKENIZER, CONTEXT, 32, CPU, record_routes=False))
    state = deepseek(seed=1).state_dict()
    with pytest.raises(ValueError, match=r"no weight 'model.unknown' of shape \(2,\)"):
        engine.sampler.load_weights(1, [("model.unknown", torch.zeros(2))])
    with pytest.raises(ValueError, match=r"no weight 'lm_head.weight' of shape \(3, 3\)"):
        engine.sampler.load_weights(1, [("lm_head.weight", torch.zeros(3, 3))])
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    with pytest.raises(ValueError, match=f"version 1 lacks 1 weights, among them '{bias}'"):
        engine.sampler.load_weights(1, [(name, tensor) for name, tensor in state.items() if name != bias])


COMMON: dict[str, Any] = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "initializer_range": 0.2,
}


def windowed(window: int) -> dict[str, Callable[[], PreTrainedModel]]:
    """Models with two or more layers, some or all of which attend to at most `window` tokens."""
    half: dict[str, Any] = {"use_sliding_window": True, "max_window_layers": 1}
    gemma3: dict[str, Any] = COMMON | {"num_hidden_layers": 3, "head_dim": 8, "sliding_window_pattern": 2}
    experts: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
    return {
        "mistral": lambda: MistralForCausalLM(MistralConfig(**COMMON, sliding_window=window)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**COMMON, **half, sliding_window=window)),
        "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**COMMON, head_dim=8, sliding_window=window)),
        "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**gemma3, sliding_window=window)),
        "gpt_oss": lambda: GptOssForCausalLM(GptOssConfig(**COMMON, **experts, sliding_window=window)),
    }


def window_model(name: str, window: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return windowed(window)[name]().eval()


@pytest.mark.slow
@pytest.mark.parametrize("window", [7, CONTEXT])
@pytest.mark.parametrize("name", windowed(1))
def test_log_probs_with_a_sliding_window_equal_those_of_a_plain_forward(name: str, window: int):
    """Rows come and go, and the prompts are shorter and longer than the window of 7 tokens."""
    block = run(window_model(name, window), rows=6)
    expected = recomputed(window_model(name, window), block, 0.8)
    np.testing.assert_allclose(block.logprobs, expected, atol=1e-4)
    other = recomputed(window_model(name, CONTEXT), block, 0.8)
    assert window == CONTEXT or np.abs(other - expected).max() > 1e-2, "the window makes no difference here"


@pytest.mark.slow
@pytest.mark.parametrize("name", windowed(1))
def test_greedy_sampling_with_a_sliding_window_equals_generate(name: str):
    block = run(window_model(name, 7), dataclasses.replace(SAMPLING, temperature=0.0), rows=3, group_size=1)
    plain = window_model(name, 7)
    for index, text in enumerate(TEXTS):
        expected = generated(plain, text, eos_token_id=2)
        assert block.tokens[slice(*block.offsets[index : index + 2])].tolist() == expected


def test_chunks_shorter_than_the_context_are_refused_with_their_size():
    architecture = Llama4TextConfig(**COMMON, attention_chunk_size=CONTEXT - 1)
    reason = f"chunked_attention have chunks of {CONTEXT - 1} tokens; model.context={CONTEXT - 1} or less"
    with pytest.raises(ConfigError, match=reason) as caught:
        layer_kinds(architecture, CONTEXT)
    assert (caught.value.key, caught.value.value) == ("rollout.engine", "hf")
    assert layer_kinds(architecture, CONTEXT - 1).is_full


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        (MambaConfig(), "mamba: it has no attention"),
        (Qwen3NextConfig(), "qwen3_next: it has layers of the kind linear_attention"),
    ],
)
def test_a_model_with_other_layers_than_attention_is_refused(
    tmp_path: Path, architecture: PreTrainedConfig, reason: str
):
    """Its config.json is sufficient; nothing is loaded."""
    architecture.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=reason):
        ENGINES.facts("hf").check(model_in(tmp_path))


def model_in(folder: Path) -> ModelConfig:
    return ModelConfig(
        name="x",
        family="pretrained",
        base_model=None,
        path=str(folder),
        package=None,
        architecture={},
        dtype="float32",
        context=CONTEXT,
    )


def test_the_registered_factory_samples_from_a_folder(tmp_path: Path):
    folder.save(llama(), TOKENIZER, tmp_path)
    rollout = compose("grpo", ["rollout.max_batch_rows=32"]).rollout
    assert {"hf", "worked_solutions"} <= set(ENGINES.names())
    engine = ENGINES.get("hf")(model_in(tmp_path), rollout, CPU, 0)
    block = generate(engine, range(len(PROMPTS)), PROMPTS, 4, SAMPLING)
    assert block.texts == run(llama()).texts
