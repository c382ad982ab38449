"""Counts the tokens of a task's prompts. All prompts are tokenized before a run starts.

The number of characters is no substitute: a hundred characters of Chinese may be three hundred tokens, and a
hundred words of English fewer. For large tasks the result is cached in the user's cache folder, under a
digest of the prompts and the tokenizer, so that a resumed or repeated run does not tokenize them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from orchestrator.training.prompts.chat_template import render_all
from orchestrator.training.prompts.source import EpochPrompts

CACHED_FROM = 10_000
"""Lengths are cached on disk for at least this many prompts; fewer are tokenized in a second."""


@dataclass(frozen=True, slots=True)
class PromptLengths:
    """Statistics of the token counts of a task's prompts, including the chat template."""

    longest: str
    """Id of the prompt with the most tokens."""
    counts: Mapping[int, int]
    """Number of prompts by number of tokens."""

    @property
    def most(self) -> int:
        """Number of tokens of the longest prompt."""
        return max(self.counts)

    @property
    def total(self) -> int:
        """Number of prompts."""
        return sum(self.counts.values())

    def at_least(self, tokens: int) -> int:
        """Number of prompts with at least `tokens` tokens."""
        return sum(count for length, count in self.counts.items() if length >= tokens)


def prompt_lengths(tokenizer: PreTrainedTokenizerFast, prompts: EpochPrompts) -> PromptLengths:
    """Return the lengths of all prompts, training and held-out. Raises ConfigError for a
    prompt that cannot be tokenized.
    """
    if len(prompts.all_prompts) < CACHED_FROM:
        return _measured(tokenizer, prompts)
    file = _cache_folder() / f"{_digest(tokenizer, prompts)}.json"
    known = _read(file)
    if known is None:
        known = _measured(tokenizer, prompts)
        _write(file, known)
    return known


def _measured(tokenizer: PreTrainedTokenizerFast, prompts: EpochPrompts) -> PromptLengths:
    everything = prompts.all_prompts
    texts = [prompt.text for prompt in everything]
    lengths = [len(rendered.tokens) for rendered in render_all(tokenizer, texts)]
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    return PromptLengths(everything[longest].prompt_id, Counter(lengths))


# -- the cache -----------------------------------------------------------------------------------------------


def _cache_folder() -> Path:
    """Return the cache folder according to the XDG base directory specification. It need not exist."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path(os.environ.get("HOME", "/")) / ".cache")
    return base / "orchestrator" / "prompt-lengths"


def _digest(tokenizer: PreTrainedTokenizerFast, prompts: EpochPrompts) -> str:
    """Hash everything that the lengths depend on."""
    parts = (prompts.digest, tokenizer.backend_tokenizer.to_str(), json.dumps(tokenizer.chat_template))
    special = json.dumps(tokenizer.special_tokens_map, default=str, sort_keys=True)
    return hashlib.sha256("\0".join((*parts, special)).encode("utf-8", "surrogatepass")).hexdigest()


def _read(file: Path) -> PromptLengths | None:
    """Read a cached result; None if the file is missing or malformed."""
    try:
        saved = json.loads(file.read_text())
        return PromptLengths(str(saved["longest"]), {int(n): int(c) for n, c in saved["counts"].items()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _write(file: Path, lengths: PromptLengths) -> None:
    """Write a result to the cache. Failures are ignored: the prompts are then tokenized again."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"longest": lengths.longest, "counts": dict(lengths.counts)}))
        partial.replace(file)
