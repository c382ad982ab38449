"""Tables on a narrow terminal: numbers are never cut or wrapped, text is folded without losing any of it."""

from __future__ import annotations

import pytest

from orchestrator.cli.output import print_table

COLUMNS = ("team", "role", "activity", "accelerator-hours", "USD", "share", "day")
LONG = "post-training-of-reasoning-models-with-long-names"
ROWS = [
    (LONG, "rollout", "generate", "2,788,000.123456", "5,576,000.000001", "99.9%", "2026-02-28"),
    ("b", "learner", "update", "0.000001", "-12.50", "0.1%", "2026-03-01"),
]
TOTAL = ("", "", "", "2,788,000.123457", "5,575,987.500001", "", "")


@pytest.mark.parametrize("width", [80, 60, 20])
def test_numbers_are_never_cut_and_text_is_folded(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(COLUMNS, ROWS, "nothing", totals=[TOTAL])
    text = capsys.readouterr().out
    for row in (*ROWS, TOTAL):
        for cell in row[3:]:
            assert any(cell in line for line in text.splitlines()), (cell, text)
    assert "…" not in text
    first_column = "".join(line.strip().split(" ")[0] for line in text.splitlines())
    assert LONG in first_column


def test_a_table_that_fits_is_no_wider_than_its_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = [("a sentence of many words, " * 5, "12.50", "no price")]
    print_table(("what", "USD", "EUR"), rows, "nothing")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("12.50" in line and "no price" in line for line in lines)


def test_an_empty_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, [], "nothing was used")
    assert capsys.readouterr().out == "nothing was used\n"
