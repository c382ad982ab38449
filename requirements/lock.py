"""Write demo.txt and test.txt from pyproject.toml: `make lock`, or `make lock UPGRADE=--upgrade`.

Each file pins every package, so that an installation needs no resolver. Versions that are already pinned stay
unless `--upgrade` is given.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHONS = ("3.11", "3.12")
SOURCES = {
    "demo": ("pyproject.toml",),
    "test": ("pyproject.toml", "--extra", "dev", "requirements/test.in"),
}
HEADER = "# Written by requirements/lock.py. `make {target}` installs exactly these and those of torch.txt.\n"


def main() -> None:
    upgrade = ["--upgrade"] if "--upgrade" in sys.argv[1:] else []
    for target in SOURCES:
        first, second = (_resolve(target, python, upgrade) for python in PYTHONS)
        if first != second:
            sys.exit(f"{target}: the packages differ between Python {' and '.join(PYTHONS)}; add markers")
        (HERE / f"{target}.txt").write_text(HEADER.format(target=target) + first, encoding="utf-8")
        print(f"{target}.txt: {len(first.splitlines())} packages")


def _resolve(target: str, python: str, upgrade: list[str]) -> str:
    pinned = HERE / f"{target}.txt"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "pins.txt")
        output.write_text(pinned.read_text(encoding="utf-8"), encoding="utf-8")
        options = ["--python-platform", "x86_64-manylinux_2_28", "--python-version", python, "--quiet"]
        options += ["--override", "requirements/excluded.txt", "--no-annotate", "--no-header"]
        command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", *options, *upgrade]
        subprocess.run(
            [*command, *SOURCES[target], "--output-file", str(output)],
            cwd=HERE.parent,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return output.read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
