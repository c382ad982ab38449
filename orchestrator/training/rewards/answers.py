r"""Where a response gives its answer.

    tags      2 + 2 = 4. <answer>4</answer>            the last complete pair of tags
    boxed     Therefore $x = \boxed{4}$.               the last \boxed{...} or \fbox{...}
    hashes    2 + 2 = <<2+2=4>>4\n#### 4               the rest of the line after the last ####, as in GSM8K
    phrase    Therefore, the answer is 4.              the rest of the sentence after the last "answer is"

`reward.answer_formats` lists the accepted formats; the first one that finds an answer decides. Text inside
`<think>...</think>`, or after a `<think>` that is never closed, is removed first: reasoning is not an answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

AnswerFormat = Literal["tags", "boxed", "hashes", "phrase"]

_SEARCHED = 100_000
"""Only this many characters at the end of a response are searched for an answer."""
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_UNBRACED = re.compile(r"[^\s{}$.,]+")
_PHRASE = re.compile(r"\banswer(?:\s+is\s*:?|\s*:)[ \t]*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?]\s+(?=[A-Z])")


def find_answer(text: str, formats: Sequence[AnswerFormat] = ("tags",)) -> str | None:
    """Find the answer of a response, without surrounding white space; None if there is none. If the prompt
    already contains the opening `<think>`, `text` must begin with it.

    >>> find_answer("<answer>3</answer> wait, <answer> 4 </answer>")
    '4'
    >>> find_answer("<think>so <answer>4</answer>") is None
    True
    >>> find_answer("hm, \\\\boxed{\\\\frac{1}{2}}, that is the answer: 0.5", ["tags", "boxed", "phrase"])
    '\\\\frac{1}{2}'
    """
    spoken = _THOUGHT.sub(" ", text)[-_SEARCHED:]
    for name in formats:
        answer = _FINDERS[name](spoken)
        if answer is not None:
            return answer.strip()
    return None


def _tags(text: str) -> str | None:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return None if start == -1 else text[start + len("<answer>") : end]


def _boxed(text: str) -> str | None:
    closing = _closing_braces(text)
    for match in reversed(list(_BOX.finditer(text))):
        if match.end() in closing:
            return text[match.end() + 1 : closing[match.end()]]
        if word := _UNBRACED.match(text, match.end()):
            return word[0]
    return None


def _closing_braces(text: str) -> dict[int, int]:
    """Map the position of each opening brace to that of its closing brace. Escaped braces do not count."""
    pairs: dict[int, int] = {}
    opened: list[int] = []
    for match in _BRACES.finditer(text):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            pairs[opened.pop()] = match.start()
    return pairs


def _hashes(text: str) -> str | None:
    found = [line for line in _HASHES.findall(text) if line.strip()]
    return found[-1] if found else None


def _phrase(text: str) -> str | None:
    for match in reversed(list(_PHRASE.finditer(text))):
        line = text[match.end() :].partition("\n")[0]
        sentence = _SENTENCE_END.split(line.strip(), maxsplit=1)[0].strip().rstrip(".!")
        # Emphasis that began before the phrase ends inside it or after it: **Answer:** 4
        for mark in ("**", "__"):
            if sentence.count(mark) % 2:
                sentence = (
                    sentence.removeprefix(mark) if sentence.startswith(mark) else sentence.removesuffix(mark)
                )
        if sentence.strip(" *_`$."):
            return sentence.rstrip(".!")
    return None


_FINDERS: Mapping[AnswerFormat, Callable[[str], str | None]] = {
    "tags": _tags,
    "boxed": _boxed,
    "hashes": _hashes,
    "phrase": _phrase,
}
