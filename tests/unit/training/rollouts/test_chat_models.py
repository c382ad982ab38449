"""Perfect answers of models with unusual chat templates and vocabularies get the full reward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from orchestrator.config.compose import compose
from orchestrator.training.records import Finish, Prompt, RolloutBlock, SamplingParams
from orchestrator.training.rewards.grader import InlineGrader
from orchestrator.training.rollouts.engines import ENGINES
from tests.fakes.chat_models import (
    CHATML,
    ENDS_WITH_EOS,
    EOS_ID,
    IM_END_ID,
    OPENS_THINK,
    chat_tokenizer,
    write_llama,
)
from tests.support.engines import generate

ANSWER = "<think>2+2=4</think><answer>4</answer>"
WITHOUT_OPENING = ANSWER.removeprefix("<think>")
MODELS = {
    "opens think": (chat_tokenizer(OPENS_THINK), EOS_ID),
    "tags are special tokens": (chat_tokenizer(CHATML, special_tags=True), IM_END_ID),
    "unknown token is eos": (chat_tokenizer(ENDS_WITH_EOS, unknown="</s>"), EOS_ID),
    "turns do not end with eos": (chat_tokenizer(CHATML), IM_END_ID),
    "base model with bos": (chat_tokenizer(adds_bos=True), EOS_ID),
}


def sampled(
    engine: str, folder: Path, tokenizer: PreTrainedTokenizerFast, solution: str, group_size: int = 2
) -> RolloutBlock:
    path = write_llama(folder, tokenizer)
    overrides = [f"model.path={path}", "model.dtype=float32", "model.context=128"]
    config = compose("grpo", ["model=pretrained", "rollout.max_new_tokens=64", *overrides])
    build = ENGINES.get(engine)
    prompt = Prompt("t/train/0", "What is 2+2?", {"answer": "4"}, solution)
    sampling = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=64, seed=0)
    return generate(
        build(config.model, config.rollout, torch.device("cpu"), 0), [0], [prompt], group_size, sampling
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "solution"), [(name, ANSWER) for name in MODELS] + [("opens think", WITHOUT_OPENING)]
)
def test_a_worked_solution_gets_the_full_reward(tmp_path: Path, name: str, solution: str) -> None:
    tokenizer, end = MODELS[name]
    block = sampled("worked_solutions", tmp_path, tokenizer, solution)
    assert block.tokens[block.offsets[1] - 1] == end and block.finish.tolist() == [Finish.STOP] * 2
    assert block.prefill(0) + block.texts[0] in (ANSWER, ANSWER.replace("<think>", "<think>\n"))
    reward = compose("grpo", ["reward=rule_based"]).reward
    scores = InlineGrader(reward, max_new_tokens=64).grade(block)
    assert scores.components["format"].tolist() == [1.0, 1.0]
    assert scores.rewards.tolist() == pytest.approx([1.1, 1.1])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_sampling_stops_at_the_end_of_a_turn_and_at_eos(tmp_path: Path, name: str) -> None:
    tokenizer, _ = MODELS[name]
    block = sampled("hf", tmp_path, tokenizer, "", group_size=32)
    stops = {EOS_ID, IM_END_ID} if tokenizer.chat_template == CHATML else {EOS_ID}
    last_tokens = set(block.tokens[block.offsets[1:] - 1].tolist())
    assert stops <= last_tokens  # the random model ends some rollouts with each
    for rollout, finish in enumerate(block.finish.tolist()):
        tokens = block.tokens[block.offsets[rollout] : block.offsets[rollout + 1]].tolist()
        assert not stops & set(tokens[:-1])
        assert (tokens[-1] in stops) is (finish == Finish.STOP)
