"""Measures how long a fresh machine takes from `git clone` to the demo, and to passing tests.

    python benchmarks/setup_time.py [--json] [--targets demo-install first-step demo test-install test]

Each measurement clones the committed state of this repository into a temporary folder and installs with
empty caches of pip and uv, so all files that are not on the disk of this machine are downloaded. Seconds are
counted from the start of the clone:

- demo-install: the installation of `make demo` is complete;
- first-step: `make demo` has printed its first learner step;
- demo: `make demo` has ended;
- test-install: the installation of `make test` is complete, in a separate clone;
- test: `make test` has ended, in the same clone. Only on request, because it runs the whole test suite.

`built_from_source` counts the packages, other than this one, for which the installer ran a build.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.machine import write_result

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {"first-step": 180.0, "demo": 420.0, "test": 1200.0}
"""Seconds on two idle cores."""
TARGETS = ("demo-install", "first-step", "demo", "test-install", "test")
DEFAULT = TARGETS[:-1]
BUILD = re.compile(r"^\s*Building (?:wheel for |editable for )?(?P<name>[\w.-]+)")
FIRST_STEP = re.compile(r"\bstep [1-9]\d*/")


@dataclass(frozen=True, slots=True)
class Row:
    """A target: its installed packages, and the seconds from the start of the clone."""

    target: str
    packages: int
    megabytes: float
    built_from_source: int
    seconds: float


class Clone:
    """A new clone with empty caches. `run` records when a target was reached."""

    def __init__(self, folder: Path) -> None:
        self._root = folder / "clone"
        self._environ = os.environ | {
            "UV_CACHE_DIR": str(folder / "uv"),
            "PIP_CACHE_DIR": str(folder / "pip"),
        }
        self._environ.pop("PYTHONPATH", None)
        self._started = time.monotonic()
        self._built: set[str] = set()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(self._root)], check=True)

    def make(self, target: str) -> Iterator[tuple[str, float]]:
        """Run `make target` and yield each line that it prints, with its time.
        Ends this program if it fails.
        """
        command = ["make", "--no-print-directory", target]
        with subprocess.Popen(
            command,
            cwd=self._root,
            env=self._environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                sys.stderr.write(line)
                if match := BUILD.match(line):
                    self._built.add(match["name"])
                yield line, time.monotonic() - self._started
        if process.returncode:
            sys.exit(f"make {target} failed with exit code {process.returncode}")

    def row(self, target: str, seconds: float | None = None) -> Row:
        """Describe the present environment."""
        took = time.monotonic() - self._started if seconds is None else seconds
        script = "import json, sys; sys.path.insert(0, 'requirements'); import install; "
        script += "print(json.dumps(install.installed()))"
        python = self._root / ".venv" / "bin" / "python"
        answer = subprocess.run([python, "-c", script], cwd=self._root, capture_output=True, check=True)
        packages, megabytes = json.loads(answer.stdout)
        built = self._built - {"rl-orchestrator", "rl_orchestrator"}
        return Row(target, packages, round(megabytes, 1), len(built), round(took, 1))


def measure_demo(targets: Sequence[str]) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        clone = Clone(Path(folder))
        for _ in clone.make(".venv/.installed-demo"):
            pass
        rows = [clone.row("demo-install")]
        if {"first-step", "demo"} & set(targets):
            first: float | None = None
            for line, at in clone.make("demo"):
                if first is None and FIRST_STEP.search(line):
                    first = at
            ended = clone.row("demo")
            rows += [clone.row("first-step", first if first is not None else ended.seconds), ended]
        return rows


def measure_test(targets: Sequence[str]) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        clone = Clone(Path(folder))
        for _ in clone.make("install"):
            pass
        rows = [clone.row("test-install")]
        if "test" in targets:
            for _ in clone.make("test"):
                pass
            rows.append(clone.row("test"))
        return rows


def measure(targets: Sequence[str]) -> list[Row]:
    """Measure all requested targets, in the order of TARGETS."""
    rows: list[Row] = []
    if {"demo-install", "first-step", "demo"} & set(targets):
        rows += measure_demo(targets)
    if {"test-install", "test"} & set(targets):
        rows += measure_test(targets)
    return [row for row in rows if row.target in targets]


def failures(rows: Sequence[Row]) -> list[str]:
    """List the violations of the limits."""
    slow = [f"{row.target}: {row.seconds:.0f} s" for row in rows if row.seconds > LIMITS.get(row.target, 1e9)]
    built = [f"{row.target}: {row.built_from_source} built" for row in rows if row.built_from_source]
    return slow + built


def main() -> int:
    """Print the table. The exit code is 1 if a target took longer than its
    limit or if any package was built.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--targets", nargs="+", default=DEFAULT, choices=TARGETS)
    arguments = parser.parse_args()
    rows = measure(arguments.targets)
    write_result("setup_time", [asdict(row) for row in rows])
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        print("target        packages  megabytes  built  seconds")
        for row in rows:
            sizes = f"{row.packages:>8} {row.megabytes:>10,.0f} {row.built_from_source:>6}"
            print(f"{row.target:<13} {sizes} {row.seconds:>8.1f}")
    for failure in failures(rows):
        print(f"over the limit: {failure}", file=sys.stderr)
    return 1 if failures(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
