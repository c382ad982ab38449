"""`orchestrator doctor`: checks whether this machine has what runs need, and how to fix what is missing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from orchestrator.cli.output import print_json, print_table
from orchestrator.launch.preflight import machine_checks


def report(output_dir: Path, as_json: bool) -> int:
    """Print all checks. Returns 0 if all passed, otherwise 1."""
    checks = machine_checks(output_dir)
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        rows = [
            [check.check, "ok" if check.ok else "MISSING", check.detail, check.remedy] for check in checks
        ]
        print_table(("check", "", "found", "what to do"), rows, "nothing to check")
    return 0 if all(check.ok for check in checks) else 1
