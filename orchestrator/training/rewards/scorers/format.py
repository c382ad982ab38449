"""Scores whether a response is one `<think>...</think>` followed by one `<answer>...</answer>`."""

from __future__ import annotations

import re

from orchestrator.training.rewards.completion import Completion
from orchestrator.training.rewards.scorers import SCORERS

_TAG = re.compile(r"(</?(?:think|answer)>)")
_TAGS = ["<think>", "</think>", "<answer>", "</answer>"]


@SCORERS.register("format")
def format_reward(completion: Completion) -> float:
    """Return 1.0 if it is, else 0.0. Only white space may surround the tags. If the chat template ends the
    prompt with `<think>`, the first tag is already open, and the model must not open it again.

    The format reward of DeepSeek-R1-Zero (arXiv 2501.12948, section 2.2.2).
    """
    pieces = _TAG.split(completion.whole_text)
    tags, outside = pieces[1::2], pieces[0::4]
    return float(tags == _TAGS and not any(piece.strip() for piece in outside))
