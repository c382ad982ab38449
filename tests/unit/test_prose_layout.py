"""Docstrings and comments are laid out by people: no line is torn off by a tool that rewrapped the text.

A formatter that wraps prose without reading it leaves two marks: a single short word on a line of its own
under a full line, and diagrams or tables whose lines were broken or joined. Both look like this: a line of
more than FULL characters, and directly under it, in the same paragraph, one of fewer than SHORT.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("orchestrator", "jobs", "benchmarks", "tests", "docs")
FULL, SHORT = 88, 15
NEW_PARAGRAPH = re.compile(r"[-*|>]|\d+\.|`{3}|\.\.\.")
"""A line that begins like this starts a list item, a table row, an example or a code block."""

NOT_YET = frozenset(
    {
        "benchmarks/learner_exactness.py",
        "benchmarks/learning_curve.py",
        "benchmarks/ledger_emit.py",
        "benchmarks/machine.py",
        "benchmarks/routing_replay.py",
        "benchmarks/trl_side.py",
        "benchmarks/vs_trl.py",
        "benchmarks/weight_publish.py",
        "jobs/grpo.py",
        "orchestrator/cli/cost/insight.py",
        "orchestrator/cli/cost/options.py",
        "orchestrator/cli/run_view.py",
        "orchestrator/config/compose.py",
        "orchestrator/config/errors.py",
        "orchestrator/config/run_config.py",
        "orchestrator/launch/budgets.py",
        "orchestrator/launch/job_runner.py",
        "orchestrator/launch/launcher.py",
        "orchestrator/ledger/accounts.py",
        "orchestrator/ledger/aws_prices.py",
        "orchestrator/ledger/bill.py",
        "orchestrator/ledger/booking.py",
        "orchestrator/ledger/budget_guard.py",
        "orchestrator/ledger/budgets.py",
        "orchestrator/ledger/calendar.py",
        "orchestrator/ledger/completion.py",
        "orchestrator/ledger/derive.py",
        "orchestrator/ledger/errors.py",
        "orchestrator/ledger/events.py",
        "orchestrator/ledger/exports/xlsx_file.py",
        "orchestrator/ledger/headline.py",
        "orchestrator/ledger/imports/mlflow.py",
        "orchestrator/ledger/journal.py",
        "orchestrator/ledger/labels.py",
        "orchestrator/ledger/ledger.py",
        "orchestrator/ledger/lines.py",
        "orchestrator/ledger/mart.py",
        "orchestrator/ledger/money.py",
        "orchestrator/ledger/prices.py",
        "orchestrator/ledger/pricing.py",
        "orchestrator/ledger/ray_watch.py",
        "orchestrator/ledger/run_report.py",
        "orchestrator/ledger/sharing.py",
        "orchestrator/ledger/spool.py",
        "orchestrator/ledger/sql/migrations/__init__.py",
        "orchestrator/ledger/sql/schema.py",
        "orchestrator/ledger/sql/types.py",
        "orchestrator/ledger/wrap.py",
        "orchestrator/training/advantages/__init__.py",
        "orchestrator/training/advantages/_groups.py",
        "orchestrator/training/advantages/config.py",
        "orchestrator/training/advantages/rloo.py",
        "orchestrator/training/checkpoints/checkpointer.py",
        "orchestrator/training/checkpoints/mirror.py",
        "orchestrator/training/cluster/nixl.py",
        "orchestrator/training/cluster/session.py",
        "orchestrator/training/learner/balance_loss.py",
        "orchestrator/training/learner/batching.py",
        "orchestrator/training/learner/config.py",
        "orchestrator/training/learner/deepspeed_learner.py",
        "orchestrator/training/learner/fake.py",
        "orchestrator/training/learner/logprobs.py",
        "orchestrator/training/learner/losses/__init__.py",
        "orchestrator/training/learner/losses/aggregation.py",
        "orchestrator/training/learner/losses/metrics.py",
        "orchestrator/training/learner/losses/objective.py",
        "orchestrator/training/learner/micro_batch.py",
        "orchestrator/training/learner/offline.py",
        "orchestrator/training/learner/port.py",
        "orchestrator/training/learner/routing.py",
        "orchestrator/training/learner/rows.py",
        "orchestrator/training/learner/schedule.py",
        "orchestrator/training/learner/sharding/distributed.py",
        "orchestrator/training/learner/sharding/fragments.py",
        "orchestrator/training/learner/sharding/zero.py",
        "orchestrator/training/models/gguf_package.py",
        "orchestrator/training/pipeline.py",
        "orchestrator/training/registry.py",
        "orchestrator/training/rewards/checkers/countdown.py",
        "orchestrator/training/rewards/completion.py",
        "orchestrator/training/rewards/grader.py",
        "orchestrator/training/rewards/overlong.py",
        "orchestrator/training/rewards/process.py",
        "orchestrator/training/rewards/rubric.py",
        "orchestrator/training/rewards/scorers/accuracy.py",
        "orchestrator/training/rewards/scorers/format.py",
        "orchestrator/training/rollouts/engine.py",
        "orchestrator/training/rollouts/pool.py",
        "orchestrator/training/rollouts/sampling.py",
        "orchestrator/training/supervision/pool.py",
        "orchestrator/training/tensors/buckets.py",
        "orchestrator/training/weights/collective.py",
        "orchestrator/training/weights/pairs.py",
        "orchestrator/training/weights/publishing.py",
        "orchestrator/training/weights/shared_memory.py",
        "orchestrator/training/weights/writers.py",
        "tests/chaos/ledger_processes.py",
        "tests/chaos/test_ledger_crashes.py",
        "tests/contracts/test_learner_contract.py",
        "tests/contracts/test_ledger_store.py",
        "tests/contracts/test_ledger_store_budgets.py",
        "tests/e2e/test_docs.py",
        "tests/fakes/random_ledgers.py",
        "tests/integration/test_mlflow.py",
        "tests/integration/test_run_budgets.py",
        "tests/unit/ledger/test_events.py",
        "tests/unit/training/learner/losses/test_kl_estimators.py",
        "tests/unit/training/learner/losses/test_objective.py",
        "tests/unit/training/tensors/test_write_plan.py",
        "tests/unit/training/weights/test_memory_of_a_publish.py",
    }
)
"""Files that still have torn lines. The list only shrinks."""

Line = tuple[int, str]
"""(line number in the file, the line with its indentation)."""


def torn(lines: Iterable[Line]) -> Iterator[int]:
    """Numbers of the lines that look torn off the line above them."""
    for (_, above), (number, line) in pairwise(lines):
        text = line.strip()
        if len(above.rstrip()) > FULL and 0 < len(text) < SHORT and not NEW_PARAGRAPH.match(text):
            yield number


def docstrings(source: str) -> Iterator[list[Line]]:
    """The lines of every string that stands alone as a statement, without its quotes."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.end_lineno:
            found = lines[node.lineno - 1 : node.end_lineno]
            yield [(node.lineno + i, line.replace('"""', "")) for i, line in enumerate(found)]


def comments(source: str) -> Iterator[list[Line]]:
    """Comments on neighbouring lines of their own, without the hash."""
    block: list[Line] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or token.line[: token.start[1]].strip():
            continue
        if block and token.start[0] != block[-1][0] + 1:
            yield block
            block = []
        block.append((token.start[0], token.line.replace("#", " ", 1).rstrip()))
    yield block


def torn_in(path: Path) -> list[int]:
    """The torn lines of a Python file."""
    source = path.read_text(encoding="utf-8")
    if max(map(len, source.splitlines()), default=0) <= FULL:
        return []
    return sorted(n for lines in (*docstrings(source), *comments(source)) for n in torn(lines))


LONG = "a line that is filled to the margin " + "x" * 60


@pytest.mark.parametrize(
    "source",
    [
        f'"""{LONG}\ntorn.\n"""\n',
        f'def f():\n    """{LONG}\n    torn."""\n',
        f'x = 1\n"""{LONG}\ntorn\n"""\n',
        f"# {LONG}\n# torn\n",
        f'"""The flow:\n\n    task --> {LONG} -->\n    learner\n"""\n',
    ],
    ids=["docstring", "closing quotes", "attribute", "comment", "diagram"],
)
def test_a_torn_line_is_found(source: str, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    assert len(torn_in(path)) == 1


@pytest.mark.parametrize(
    "source",
    [
        f'"""{LONG}\n"""\n',
        f'"""{LONG}\n\nshort\n"""\n',
        f'"""{LONG}\n- item\n"""\n',
        f'"""{LONG}\nand a last line of some words.\n"""\n',
        "# short\n# too\n",
        f"x = 1  # {LONG}\n# no paragraph\n",
    ],
    ids=["one line", "next paragraph", "list", "full enough", "short comments", "trailing comment"],
)
def test_a_line_that_was_meant_is_not(source: str, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    assert torn_in(path) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_line_is_torn(folder: str) -> None:
    found = {
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        if str(path.relative_to(ROOT)) not in NOT_YET
        for number in torn_in(path)
    }
    assert found == set()
