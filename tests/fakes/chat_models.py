"""Tiny random Llamas and tokenizers that each differ in one aspect: how a chat template begins and ends
turns, which tokens are special, which tokens the tokenizer adds.

A token is a character, except in `byte_tokenizer`, where it is a byte of UTF-8.
"""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteDecoder
from tokenizers.decoders import Fuse
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
"""Ids 0 to 4. `</s>` (2) is the end-of-sequence token; in CHATML `<|im_end|>` (4) ends a turn."""
BOS_ID, EOS_ID, IM_END_ID = 1, 2, 4
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
CHARACTERS = ("\n", *sorted(set(string.printable) - set(string.whitespace) | {" "}))

_TURNS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}END\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML = _TURNS.replace("END", "<|im_end|>")
ENDS_WITH_EOS = _TURNS.replace("END", "{{ eos_token }}")
OPENS_THINK = (
    "{{ bos_token }}{% for m in messages %}User: {{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %} Assistant: <think>\n{% endif %}"
)


def chat_tokenizer(
    template: str | None = None,
    *,
    special_tags: bool = False,
    unknown: str | None = None,
    adds_bos: bool = False,
    adds_eos: bool = False,
) -> PreTrainedTokenizerFast:
    """A character tokenizer. `unknown` is its unknown token; the tags are special tokens if `special_tags`;
    `adds_bos` and `adds_eos` select the special tokens that it adds to a text.
    """
    tokens = (*SPECIAL, *TAGS, *CHARACTERS)
    named = {} if unknown is None else {"unk_token": unknown}
    backend = Tokenizer(WordLevel({token: index for index, token in enumerate(tokens)}, **named))
    backend.pre_tokenizer = Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = Fuse()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tags = [AddedToken(token, special=special_tags, normalized=False) for token in TAGS]
    if special_tags:
        backend.add_special_tokens(tags)
    else:
        backend.add_tokens(tags)
    if adds_bos or adds_eos:
        backend.post_processor = TemplateProcessing(
            single=f"{'<s> ' if adds_bos else ''}$A{' </s>' if adds_eos else ''}",
            special_tokens=[("<s>", BOS_ID), ("</s>", EOS_ID)],
        )
    return _wrapped(backend, template, named)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte of UTF-8, without a chat template."""
    tokens = [*SPECIAL[:3], *sorted(ByteLevel.alphabet())]
    backend = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = ByteDecoder()
    backend.add_special_tokens([AddedToken(token, special=True) for token in tokens[:3]])
    return _wrapped(backend, None, {})


def write_llama(folder: Path, tokenizer: PreTrainedTokenizerFast, *, attention_dropout: float = 0.0) -> Path:
    """Write a folder with a Llama of 23 thousand random parameters and the tokenizer. The vocabulary is
    padded, as in many published models.
    """
    config = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 32) * 32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        attention_dropout=attention_dropout,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _wrapped(backend: Tokenizer, template: str | None, named: dict[str, str]) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=256,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **named,
    )
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer
