"""Every command in README.md and docs/ runs, and every link leads somewhere.

A fenced block marked `bash` is a promise: it is carried out here, from the repository's root, in the order of
the page, with runs under a folder of its own, in which one small finished pipeline is `latest`. What takes
longer than a test may is listed in NOT_HERE, with who runs it instead. Output is shown in blocks marked
`text`.
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
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")

NOT_HERE = {
    r"make demo": "benchmarks/learning_curve.py runs the same job, for three seeds",
    r"make (install|test|check|lint|bench|docs)": "continuous integration and the pages' own readers",
    r"(\.venv/bin/)?python benchmarks/\w+\.py.*": "the person who publishes the figures",
    r"git clone .*|cd .*": "there is a checkout already",
    r"(\.venv/bin/)?pre-commit install.*": "it would change this checkout",
}

TINY = (
    "steps=2",
    "task.train_size=64",
    "task.heldout_size=16",
    "evaluation.prompts=16",
    "evaluation.every=1",
    "rollout.prompts_per_step=8",
    "stages.grpo.rollout.group_size=4",
)
"""Overrides that make the demo a matter of seconds."""


def blocks(page: Path) -> list[str]:
    """The `bash` blocks of a page without the lines that are not run here."""
    found: list[str] = []
    for block in BLOCK.findall(page.read_text()):
        lines = [line for line in block.splitlines() if not _elsewhere(line)]
        if any(line.strip() and not line.lstrip().startswith("#") for line in lines):
            found.append("\n".join(lines))
    return found


def _elsewhere(line: str) -> bool:
    command = line.split("  #", 1)[0].strip()
    return any(re.fullmatch(pattern, command) for pattern in NOT_HERE)


@pytest.fixture(scope="session")
def reader(program: Program) -> dict[str, str]:
    """The environment of a reader who has run one small pipeline."""
    program("run", "r1_demo", "--run-id", "demo", *TINY)
    return {
        **os.environ,
        "ORCHESTRATOR_OUTPUT_DIR": str(program.output_dir),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page: Path, reader: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", "\n".join(blocks(page))],
        cwd=ROOT,
        env=reader,
        capture_output=True,
        text=True,
        timeout=LONGEST_COMMAND,
        check=False,
    )
    assert done.returncode == 0, f"{page.name}:\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    broken = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]

    assert not broken
