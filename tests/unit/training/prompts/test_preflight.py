"""Runs are rejected before they start if a prompt or a worked solution is too long."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from orchestrator.errors import ConfigError, PromptTooLongError
from orchestrator.training.models.config import ModelConfig
from orchestrator.training.prompts import lengths, preflight
from orchestrator.training.prompts.lengths import prompt_lengths
from orchestrator.training.prompts.preflight import check_prompts, check_stop_tokens, check_thinking_tags
from orchestrator.training.prompts.source import EpochPrompts
from orchestrator.training.records import Prompt
from tests.fakes.chat_models import CHATML, byte_tokenizer, chat_tokenizer

MODEL = ModelConfig(
    name="bytes",
    family="pretrained",
    base_model=None,
    path="/nowhere",
    package=None,
    architecture={},
    dtype="float32",
    context=256,
)


def prompts(*texts: str, solution: str = "") -> EpochPrompts:
    made = [Prompt(f"t/train/{index}", text, {}, solution) for index, text in enumerate(texts)]
    return EpochPrompts(made, [Prompt("t/heldout/0", "held out", {})], seed=0)


@pytest.fixture
def of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "build_tokenizer", lambda _: byte_tokenizer())


@pytest.mark.usefixtures("of_bytes")
def test_lengths_are_counted_in_tokens() -> None:
    """100 characters and 300 tokens, after 80 prompts with more characters and fewer tokens."""
    texts = [f"{number:03d} {'abcdefghij' * 15}" for number in range(80)] + ["数" * 100]
    with pytest.raises(PromptTooLongError) as caught:
        check_prompts(MODEL, prompts(*texts), 64, replays_solutions=False)
    assert caught.value.value == "1 of 82 prompts too long, the longest t/train/80 of 300 tokens"
    assert caught.value.allowed == "at most 255 tokens (model.context is 256)"
    check_prompts(MODEL.model_copy(update={"context": 512}), prompts(*texts), 64, replays_solutions=False)


@pytest.mark.usefixtures("of_bytes")
def test_prompts_that_shorten_responses_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_prompts(MODEL, prompts("x" * 230, "y"), 26, replays_solutions=False)
        assert not caplog.records
        check_prompts(MODEL, prompts("x" * 230, "y"), 27, replays_solutions=False)
    assert "1 of 3 prompts leave room for fewer than 27 tokens" in caplog.text
    assert "the longest prompt at 26 tokens" in caplog.text


@pytest.mark.usefixtures("of_bytes")
@pytest.mark.parametrize(
    ("text", "solution", "key", "value"),
    [
        ("1+1", "", "task.solutions", "null"),
        ("1+1", "x" * 64, "rollout.max_new_tokens", "64"),
        ("x" * 220, "x" * 40, "model.context", "256"),
    ],
)
def test_a_solution_that_cannot_be_replayed_is_rejected(
    text: str, solution: str, key: str, value: str
) -> None:
    check_prompts(MODEL, prompts(text, solution=solution), 64, replays_solutions=False)
    check_prompts(MODEL, prompts("1+1", solution="x" * 63), 64, replays_solutions=True)
    with pytest.raises(ConfigError, match="t/train/0") as caught:
        check_prompts(MODEL, prompts(text, solution=solution), 64, replays_solutions=True)
    assert (caught.value.key, caught.value.value) == (key, value)


def test_lengths_include_the_chat_template() -> None:
    found = prompt_lengths(chat_tokenizer(CHATML), prompts("1+1", "12+12"))
    assert found.total == 3 and found.longest == "t/heldout/0"
    template = ["<|im_start|>", *"user\n", "<|im_end|>", "\n", "<|im_start|>", *"assistant\n"]
    assert found.most == len("held out") + len(template) and found.at_least(found.most) == 1


# -- the cache -----------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], int]:
    """A separate cache for tasks of any size. Returns a function that counts the tokenized texts so far."""
    seen: list[str] = []
    rendered = lengths.render_all

    def render_all(tokenizer: object, texts: Sequence[str]) -> object:
        seen.extend(texts)
        return rendered(tokenizer, texts)  # pyright: ignore[reportArgumentType]  (a stand-in)

    monkeypatch.setattr(lengths, "CACHED_FROM", 1)
    monkeypatch.setattr(lengths, "render_all", render_all)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return lambda: len(seen)


def test_prompts_are_tokenized_once(counted: Callable[[], int]) -> None:
    first = prompt_lengths(byte_tokenizer(), prompts("数数", "1"))
    assert prompt_lengths(byte_tokenizer(), prompts("数数", "1")) == first and counted() == 3
    assert prompt_lengths(byte_tokenizer(), prompts("数数数", "1")).most == 9 and counted() == 6


def test_lengths_are_cached_per_tokenizer_and_template(counted: Callable[[], int]) -> None:
    plain, chat = chat_tokenizer(), chat_tokenizer(CHATML)
    assert prompt_lengths(plain, prompts("1")).most < prompt_lengths(chat, prompts("1")).most
    assert prompt_lengths(chat_tokenizer(adds_bos=True), prompts("1")).most == 9
    assert counted() == 6


@pytest.mark.parametrize("content", ["", "{", "[]", '{"longest": "x", "counts": 3}'])
def test_a_damaged_cache_is_measured_again(counted: Callable[[], int], tmp_path: Path, content: str) -> None:
    first = prompt_lengths(byte_tokenizer(), prompts("1"))
    (file,) = (tmp_path / "orchestrator" / "prompt-lengths").iterdir()
    file.write_text(content)
    assert prompt_lengths(byte_tokenizer(), prompts("1")) == first and counted() == 4


def test_a_cache_that_cannot_be_written_is_ignored(
    counted: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert prompt_lengths(byte_tokenizer(), prompts("1")).most == 8 and counted() == 2


@pytest.mark.usefixtures("of_bytes")
def test_a_stop_token_must_be_in_the_vocabulary() -> None:
    size = len(byte_tokenizer())
    check_stop_tokens(MODEL, {"rollout.stop_token_ids": [0, size - 1], "evaluation.stop_token_ids": []})
    with pytest.raises(ConfigError, match=f"evaluation.stop_token_ids: got {size}, allowed: 0 to {size - 1}"):
        check_stop_tokens(MODEL, {"rollout.stop_token_ids": [1], "evaluation.stop_token_ids": [size]})


def test_without_stop_tokens_no_tokenizer_is_loaded() -> None:
    check_stop_tokens(MODEL, {"rollout.stop_token_ids": []})


def test_a_thinking_budget_needs_a_tokenizer_that_writes_the_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "rollout.thinking_token_budget"
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token=None)))
    monkeypatch.setattr(preflight, "build_tokenizer", lambda _: words)
    check_thinking_tags(MODEL, {key: None})
    with pytest.raises(ConfigError, match=f"{key}: got 9, allowed: null .*cannot write </think>"):
        check_thinking_tags(MODEL, {key: 9})
    monkeypatch.setattr(preflight, "build_tokenizer", lambda _: byte_tokenizer())
    check_thinking_tags(MODEL, {key: 9})
