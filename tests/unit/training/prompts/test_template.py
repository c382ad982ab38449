from __future__ import annotations

import pytest

from orchestrator.errors import ConfigError
from orchestrator.training.prompts.template import render, template_fields


def test_braces_in_a_question_are_kept() -> None:
    assert render("Q: {question}", {"question": "{answer} {0} {{x}}"}, set()) == "Q: {answer} {0} {{x}}"


def test_braces_of_a_template() -> None:
    assert render(r"{question} in \boxed{} {{question}}", {"question": "1+1"}, set()) == (
        r"1+1 in \boxed{} {question}"
    )


def test_lists_are_joined_by_commas() -> None:
    assert render("{numbers}={target}", {"numbers": [3, 6, 2], "target": 7}, set()) == "3,6,2=7"


def test_a_missing_field_is_reported_with_the_existing_fields() -> None:
    with pytest.raises(ConfigError, match=r"task.template: got \{qestion\}, allowed: \{question\}"):
        render("{qestion}", {"question": "1+1", "answer": "2"}, {"answer"})


def test_a_field_that_gives_the_answer_away_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"got \{answer\}"):
        render("{question} {answer}", {"question": "1+1", "answer": "2"}, {"answer"})


def test_fields_of_a_template() -> None:
    assert template_fields(r"{question} {{no}} \boxed{} {target}") == {"question", "target"}
