"""A character-level tokenizer for models that are trained from scratch.

Every printable ASCII character and the newline is one token, so any English or arithmetic text can be
written, and decoding is exactly the inverse of encoding: no space is added, dropped or normalised. The tags
of the answer format are single tokens.

As with every tokenizer of transformers, the literal text `<eos>` stands for that special token.

There is no unknown token: the tokenizer raises an error for a character outside the vocabulary, here and in
plain transformers. `encode_text` in `training/prompts/chat_template.py` turns it into an error
that names the character.
"""

from __future__ import annotations

import string

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
CHARACTERS = "\n" + "".join(sorted(set(string.printable) - set(string.whitespace) | {" "}))


def character_tokenizer(context: int) -> PreTrainedTokenizerFast:
    """Build the tokenizer. Ids 0, 1, 2 are pad, bos and eos, followed by the tags and the characters in
    ASCII order: 103 tokens in total.

    `context` is the maximum number of tokens of a model with this tokenizer. Encoding adds no bos, because
    the models are trained without one.
    """
    tokens = [PAD, BOS, EOS, *TAGS, *CHARACTERS]
    backend = Tokenizer(WordLevel({token: index for index, token in enumerate(tokens)}))
    backend.pre_tokenizer = Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = Fuse()
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (PAD, BOS, EOS)]
    )
    # The tags are ordinary tokens, not special ones: plain `decode(skip_special_tokens=True)` must show them.
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=context,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
