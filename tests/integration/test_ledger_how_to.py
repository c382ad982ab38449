"""The how-to for finance teams: every command of it runs, in order, and prints the output on the page."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "close-a-month.md"
BLOCK = re.compile(r"^```(bash|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_commands_of_the_page_close_a_month():
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    program = "\n".join(text for kind, text in blocks if kind == "bash")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "120",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = {" ".join(line.split()) for line in done.stdout.splitlines()}
    shown = [" ".join(line.split()) for kind, text in blocks if kind == "text" for line in text.splitlines()]
    assert [line for line in shown if line not in printed] == []
    assert "2026-09 is closed: 8 postings" in done.stdout
    assert "The hash chain of 8 postings is intact" in done.stdout
