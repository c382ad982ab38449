"""Models with random weights, a tokenizer for them, and the sizes of the measurements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from orchestrator.capacity.shape import ModelShape, read_shape
from orchestrator.training.records import Prompt

SizeName = Literal["tiny", "full"]
Family = Literal["dense", "moe"]
END = "<eos>"
LOGIT_DEVIATION = 3.0
"""Standard deviation of the logits, as in trained models. With the usual initialisation they would be so
close to each other that rounding could hardly change a log-prob.
"""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured: `full` fits an accelerator with 40 GB or more, `tiny` a CPU core in a test."""

    architectures: dict[Family, dict[str, Any]]
    prompts: int
    group_size: int
    prompt_tokens: int
    new_tokens: int
    learner_groups: int
    micro_batch_tokens: int
    bucket_bytes: int
    copy_bytes: int
    matmul: int
    """The matrices of the matmul that measures the peak FLOP/s have this width."""
    rounds: int

    @property
    def rows(self) -> int:
        """Rows that are sampled at once."""
        return self.prompts * self.group_size

    @property
    def context(self) -> int:
        return self.prompt_tokens + self.new_tokens

    def shape(self, family: Family) -> ModelShape:
        return read_shape(self.architectures[family])


_LLAMA = {
    "model_type": "llama",
    "vocab_size": 32768,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
"""The shape of Llama 3.2 1B with a smaller vocabulary: 1.04 billion parameters."""
_QWEN3_MOE = {
    "model_type": "qwen3_moe",
    "vocab_size": 32768,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "moe_intermediate_size": 512,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
"""A mixture of experts of the Qwen3 family with 0.92 billion parameters, 0.22 billion of them active."""
_TINY = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}  # fmt: skip
_TINY_MOE = {**_TINY, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}

SIZES: dict[SizeName, Size] = {
    "tiny": Size(
        architectures={"dense": {**_LLAMA, **_TINY}, "moe": {**_QWEN3_MOE, **_TINY_MOE}},
        prompts=2,
        group_size=2,
        prompt_tokens=6,
        new_tokens=8,
        learner_groups=2,
        micro_batch_tokens=32,
        bucket_bytes=1 << 16,
        copy_bytes=1 << 20,
        matmul=64,
        rounds=1,
    ),
    "full": Size(
        architectures={"dense": _LLAMA, "moe": _QWEN3_MOE},
        prompts=32,
        group_size=8,
        prompt_tokens=128,
        new_tokens=128,
        learner_groups=16,
        micro_batch_tokens=8192,
        bucket_bytes=1 << 28,
        copy_bytes=1 << 31,
        matmul=8192,
        rounds=2,
    ),
}


@torch.no_grad()
def random_model(size: Size, family: Family, device: torch.device) -> PreTrainedModel:
    """A model in bfloat16 with random weights, always the same ones on the same device."""
    architecture = dict(size.architectures[family])
    config = AutoConfig.for_model(architecture.pop("model_type"), **architecture, eos_token_id=0)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    head = model.get_output_embeddings().weight
    model.get_parameter("model.norm.weight").fill_(LOGIT_DEVIATION / float(head.std()) / head.shape[1] ** 0.5)
    return model.eval()


def word_tokenizer(size: Size) -> PreTrainedTokenizerFast:
    """One token for each word `w1`, `w2`, ...; token 0 ends a response."""
    vocabulary = size.architectures["dense"]["vocab_size"]
    backend = Tokenizer(WordLevel({END: 0} | {f"w{index}": index for index in range(1, vocabulary)}))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, pad_token=END, model_max_length=size.context
    )


def random_prompts(size: Size) -> list[Prompt]:
    """Different prompts of `prompt_tokens` words each."""
    vocabulary = size.architectures["dense"]["vocab_size"]
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(1, vocabulary, (size.prompts, size.prompt_tokens), generator=generator)
    return [
        Prompt(f"gpu_check/train/{index}", " ".join(f"w{word}" for word in row), {})
        for index, row in enumerate(words.tolist())
    ]
