"""Write demo.txt, test.txt and vllm.txt: `make lock`, or `make lock UPGRADE=--upgrade`.

Each file pins every package, so that an installation needs no resolver. Versions that are already pinned stay
unless `--upgrade` is given.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from install import TORCH, requirements

HERE = Path(__file__).resolve().parent
PYTHONS = ("3.11", "3.12")
SOURCES = {
    "demo": ("pyproject.toml",),
    "test": ("pyproject.toml", "--extra", "dev", "requirements/test.in"),
    "vllm": ("requirements/vllm.in",),
}
MAKE = {"demo": "make demo", "test": "make test", "vllm": "make engines"}
HEADER = "# Written by requirements/lock.py. `{make}` installs exactly these and those of {torch}.\n"
SHARED = ("ray", "pydantic", "pydantic-core")
"""Packages whose objects pass between the environments: they have the versions of demo.txt everywhere."""


def main() -> None:
    upgrade = ["--upgrade"] if "--upgrade" in sys.argv[1:] else []
    for target in SOURCES:
        first, second = (_resolve(target, python, upgrade) for python in PYTHONS)
        if first != second:
            sys.exit(f"{target}: the packages differ between Python {' and '.join(PYTHONS)}; add markers")
        header = HEADER.format(make=MAKE[target], torch=TORCH[target])
        (HERE / f"{target}.txt").write_text(header + first, encoding="utf-8")
        print(f"{target}.txt: {len(first.splitlines())} packages")


def _resolve(target: str, python: str, upgrade: list[str]) -> str:
    pinned = HERE / f"{target}.txt"
    with tempfile.TemporaryDirectory() as folder:
        output, shared = Path(folder, "pins.txt"), Path(folder, "shared.txt")
        output.write_text(pinned.read_text(encoding="utf-8") if pinned.exists() else "", encoding="utf-8")
        shared.write_text("\n".join(_shared_pins()) if target == "vllm" else "", encoding="utf-8")
        options = ["--python-platform", "x86_64-manylinux_2_28", "--python-version", python, "--quiet"]
        options += ["--override", "requirements/excluded.txt", "--constraints", str(shared)]
        options += ["--no-annotate", "--no-header"]
        command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", *options, *upgrade]
        subprocess.run(
            [*command, *SOURCES[target], "--output-file", str(output)],
            cwd=HERE.parent,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return output.read_text(encoding="utf-8")


def _shared_pins() -> list[str]:
    pins = requirements(HERE / "demo.txt")
    return [pin for pin in pins if pin.partition("==")[0] in SHARED]


if __name__ == "__main__":
    main()
