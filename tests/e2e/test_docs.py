"""Every command in README.md and docs/ runs, and every link resolves.

A fenced block marked `bash` is run from the repository's root, in the order of the page, with a separate
output directory in which one small finished pipeline is `latest`. A comment `<!-- exit: 2 -->`, or `<!--
exit: 0 or 1 -->`, above a block states the exit codes that its last command may have; without one, every
command must succeed. NOT_HERE lists commands that take too long for a test, and where they are run instead.
The commands of `close-a-month.md` are run by tests/integration/test_ledger_how_to.py, with their output.
Blocks marked `text` show output and are not run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import LONGEST_COMMAND, Program

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- exit: (?P<codes>[0-9or ]+) -->\n)?^```bash\n(?P<script>.*?)^```", re.MULTILINE | re.DOTALL
)
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")

NOT_HERE = {
    r"make demo": "benchmarks/learning_curve.py runs the same job, for three seeds",
    r"make (install|test|check|lint|bench|docs)": "continuous integration and the pages' own readers",
    r"(\.venv/bin/)?python benchmarks/\w+\.py.*": "the person who publishes the figures",
    r"git clone .*|cd .*": "there is a checkout already",
    r"(\.venv/bin/)?pre-commit install.*": "it would change this checkout",
}

NEED_NO_RUN = {
    "adopt-the-ledger.md",
    "bring-your-own-task.md",
    "capacity.md",
    "check-the-ledger-against-ray.md",
    "reconcile-a-bill.md",
    "watch-a-run.md",
}
"""Pages whose commands do not need the finished pipeline, and therefore no Ray."""

TINY = (
    "steps=2",
    "task.train_size=64",
    "task.heldout_size=16",
    "evaluation.prompts=16",
    "evaluation.every=1",
    "rollout.prompts_per_step=8",
    "stages.grpo.rollout.group_size=4",
)
"""Overrides with which the demo takes seconds."""


def blocks(page: Path) -> list[str]:
    """The `bash` blocks of a page as shell scripts, without the lines that are not run here."""
    found: list[str] = []
    for block in BLOCK.finditer(page.read_text()):
        lines = [line for line in block["script"].splitlines() if not _elsewhere(line)]
        if any(line.strip() and not line.lstrip().startswith("#") for line in lines):
            script = "\n".join(lines)
            found.append(_expecting(block["codes"], script) if block["codes"] else script)
    return found


def _expecting(codes: str, script: str) -> str:
    """A script that succeeds if `script` exits with one of `codes`, such as `0 or 1`."""
    allowed = "|".join(codes.replace("or", " ").split())
    return f"(set +e\n{script}\n) && code=0 || code=$?\ncase $code in {allowed}) ;; *) exit 99 ;; esac"


def _elsewhere(line: str) -> bool:
    command = line.split("  #", 1)[0].strip()
    return any(re.fullmatch(pattern, command) for pattern in NOT_HERE)


@pytest.fixture(scope="session")
def newcomer(program: Program) -> dict[str, str]:
    """The environment of a reader who has not run anything."""
    return {
        **os.environ,
        "ORCHESTRATOR_OUTPUT_DIR": str(program.output_dir),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


@pytest.fixture(scope="session")
def reader(program: Program, newcomer: dict[str, str]) -> dict[str, str]:
    """The environment of a reader who has run one small pipeline."""
    program("run", "r1_demo", "--run-id", "demo", *TINY)
    return newcomer


def _pages(*, need_a_run: bool) -> list[Path]:
    pages = [page for page in PAGES if page.name != "close-a-month.md" and blocks(page)]
    return [page for page in pages if (page.name not in NEED_NO_RUN) == need_a_run]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("page", _pages(need_a_run=True), ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page: Path, reader: dict[str, str]) -> None:
    _run_commands(page, reader)


@pytest.mark.slow
@pytest.mark.parametrize("page", _pages(need_a_run=False), ids=lambda page: page.name)
def test_the_commands_of_a_page_run_without_a_run(page: Path, newcomer: dict[str, str]) -> None:
    _run_commands(page, newcomer)


def _run_commands(page: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", "\n".join(blocks(page))],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONGEST_COMMAND,
        check=False,
    )
    assert done.returncode == 0, f"{page.name}:\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_resolve(page: Path) -> None:
    broken = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]

    assert not broken


def test_a_block_may_state_its_exit_codes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- exit: 1 or 2 -->\n```bash\nfalse\n```\n\n```bash\ntrue\n```\n")
    expected, plain = blocks(page)

    def code(script: str) -> int:
        return subprocess.run(["bash", "-euo", "pipefail", "-c", script], check=False).returncode

    assert code(expected) == 0
    assert code(expected.replace("false", "true")) == 99
    assert plain == "true"


SHELL_TRICKS = re.compile(r"/dev/null|\|\| (?:true|test)\b")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_contain_no_test_scaffolding(page: Path) -> None:
    assert [block for block in BLOCK.findall(page.read_text()) if SHELL_TRICKS.search(block[1])] == []
