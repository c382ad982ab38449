from __future__ import annotations

import pytest

from orchestrator.errors import CheckpointError, ConfigError
from orchestrator.training.prompts.source import EpochPrompts, epoch_order
from orchestrator.training.records import Prompt


def prompts(split: str, count: int, word: str = "question") -> list[Prompt]:
    return [Prompt(f"t/{split}/{index}", f"{word} {split} {index}", {}) for index in range(count)]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    # Written down: a checkpoint of an older version must find the same order.
    assert epoch_order(0, 0, 8) == [1, 5, 7, 2, 4, 6, 3, 0]
    assert epoch_order(0, 1, 8) == [4, 1, 7, 6, 2, 3, 0, 5]
    assert epoch_order(1, 0, 8) != epoch_order(0, 0, 8)


def test_the_state_has_three_small_fields() -> None:
    source = EpochPrompts(prompts("train", 5), prompts("heldout", 2), seed=0)
    source.take(7)
    assert source.state_dict() == {"epoch": 1, "position": 2, "digest": source.digest}


def test_changed_data_is_detected_on_resume() -> None:
    state = EpochPrompts(prompts("train", 5), [], seed=0).state_dict()
    changed = EpochPrompts(prompts("train", 5, word="another"), [], seed=0)
    with pytest.raises(CheckpointError, match="have changed since the checkpoint"):
        changed.load_state_dict(state)


def test_an_unknown_id_is_reported_as_changed_data() -> None:
    with pytest.raises(CheckpointError, match="no prompt 't/train/9'"):
        EpochPrompts(prompts("train", 5), [], seed=0).get("t/train/9")


def test_too_few_heldout_prompts_are_rejected() -> None:
    with pytest.raises(ConfigError, match=r"evaluation.prompts: got 3, allowed: at most .* 2"):
        EpochPrompts(prompts("train", 5), prompts("heldout", 2), seed=0).heldout(3)


def test_ids_are_unique() -> None:
    with pytest.raises(ValueError, match="share an id"):
        EpochPrompts(prompts("train", 2) * 2, [], seed=0)


def test_an_empty_training_set_is_rejected() -> None:
    with pytest.raises(ValueError, match="no training prompts"):
        EpochPrompts([], [], seed=0)


def test_solutions_differ_between_epochs_but_not_between_runs() -> None:
    def source() -> EpochPrompts:
        return EpochPrompts(prompts("train", 5), [], 0, write=lambda prompt_id, epoch: f"{prompt_id} {epoch}")

    first, again = source(), source()
    taken = first.take(15)
    assert taken == again.take(7) + again.take(8)
    for epoch in range(3):
        of_epoch = taken[5 * epoch : 5 * epoch + 5]
        assert all(prompt.solution == f"{prompt.prompt_id} {epoch}" for prompt in of_epoch)


def test_get_returns_the_prompt_with_its_last_solution() -> None:
    source = EpochPrompts(
        prompts("train", 5), prompts("heldout", 1), 0, write=lambda prompt_id, epoch: f"{prompt_id} {epoch}"
    )
    taken = source.take(7)
    restored = EpochPrompts(
        prompts("train", 5), prompts("heldout", 1), 0, write=lambda prompt_id, epoch: f"{prompt_id} {epoch}"
    )
    restored.load_state_dict(source.state_dict())
    latest = {prompt.prompt_id: prompt for prompt in taken}
    assert all(restored.get(prompt_id) == prompt for prompt_id, prompt in latest.items())
    assert restored.get("t/heldout/0").solution == ""
