"""Run the FinOps Foundation's validator over an export: make focus-validate

This is not part of the test suite: the validator needs Python 3.12 or newer and libraries that conflict with
this package, so it gets its own environment (`.venv-focus`). Exit code 0: no rule failed except the one that
cannot be satisfied (docs/reference/focus.md).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from orchestrator.ledger.focus import focus_rows, write_csv, write_parquet
from tests.focus.sample import sample_ledger

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-focus"
REQUIREMENTS = ("focus-validator==2.2.1", "pyarrow<20")
PYTHONS = ("python3.12", "python3.13", "python3.14")
SUPPORTED = (
    "ACCOUNT_NAMING_SUPPORTED",
    "BILLING_BASED_ON_PROVISIONED_RESOURCES_SUPPORTED",
    "MULTIPLE_PRICING_CATEGORIES_SUPPORTED",
    "REGION_SUPPORTED",
    "RESOURCE_TYPE_ASSIGNMENT_SUPPORTED",
    "SUB_ACCOUNT_SUPPORTED",
    "TAGGING_SUPPORTED",
    "USAGE_MEASUREMENT_SUPPORTED",
)
"""What the ledger supports as a provider, in the validator's terms. Rules for other features do not apply."""

CONTRADICTION = frozenset({"InvoiceId-C-004-C", "InvoiceId-C-005-C"})
"""One requires InvoiceId to be null in every row, the other in none; neither checks
whether a charge has an invoice.
"""


def main() -> int:
    """Validate both formats. Returns the exit code."""
    program = install()
    failed = 0
    results: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = focus_rows(sample_ledger(folder))
        for suffix, write in (("csv", write_csv), ("parquet", write_parquet)):
            write(rows, folder / f"focus.{suffix}")
            checked, wrong = validate(program, folder / f"focus.{suffix}")
            results[suffix] = {"rows": len(rows), "rules_checked": checked, "failed": wrong}
            failed += len(set(wrong) - CONTRADICTION) + (len(wrong) > 1)
    print(json.dumps(results, indent=2))  # noqa: T201 - a program
    return 1 if failed else 0


def install() -> Path:
    """Install the validator in its own environment and return its program."""
    program = ENVIRONMENT / "bin" / "focus-validator"
    if not program.exists():
        python = os.environ.get("FOCUS_PYTHON") or next(filter(shutil.which, PYTHONS), None)
        if python is None:
            sys.exit(f"none of {', '.join(PYTHONS)} is here; name one: FOCUS_PYTHON=/path/to/python3.12")
        subprocess.run([python, "-m", "venv", str(ENVIRONMENT)], check=True)
        pip = [str(ENVIRONMENT / "bin" / "pip"), "install", "--quiet", *REQUIREMENTS]
        subprocess.run(pip, check=True)
    return program


def validate(program: Path, file: Path) -> tuple[int, list[str]]:
    """Return how many rules were checked, and the names of those that failed. The exit
    code of the validator is always 0.
    """
    report = file.with_suffix(".xml")
    [package] = ENVIRONMENT.glob("lib/python3*/site-packages")
    command = [str(program), "--data-file", str(file), "--block-download", "--validate-version", "1.2"]
    command += ["--applicability-criteria", ",".join(SUPPORTED)]
    command += ["--output-type", "unittest", "--output-destination", str(report)]
    # It only finds its own currency codes from the folder in which it is installed.
    done = subprocess.run(command, cwd=package, capture_output=True, text=True, check=False)
    if not report.exists():
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    cases = list(ElementTree.parse(report).iter("testcase"))
    wrong = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    checked = sum(case.find("skipped") is None for case in cases)
    return checked, sorted(str(case.get("name")).split(" ")[0] for case in wrong)


if __name__ == "__main__":
    sys.exit(main())
