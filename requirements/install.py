"""Install what `make demo`, `make test` or `make engines` needs into the environment that runs this script.

    .venv/bin/python requirements/install.py demo

The versions are those of `demo.txt`, `test.txt` or `vllm.txt` beside this file, and every one of them is a
wheel: uv is told to build nothing. pip's settings (index, find-links, certificate, ...) are handed on to uv,
so a machine that is set up for pip needs no further configuration.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path

UV = "uv==0.13.9"
TORCH = {"demo": "torch.txt", "test": "torch.txt", "vllm": "vllm-torch.txt"}
"""The file with torch for each target."""
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WHEELS = HERE / "wheels"

UV_SETTINGS = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "no-cache-dir": "UV_NO_CACHE",
}
"""pip's options and the environment variables by which uv knows them."""


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1] not in TORCH:
        sys.exit(f"usage: python requirements/install.py {'|'.join(TORCH)}")
    target = sys.argv[1]
    started = time.monotonic()
    _say(f"[1/4] {UV}, the installer")
    _run("-m", "pip", "install", "--quiet", "--disable-pip-version-check", UV)
    settings = uv_settings(_pip_config(), os.environ)
    pins = HERE / f"{target}.txt"
    _say("[2/4] torch")
    _uv(settings, "--requirements", HERE / TORCH[target], "--constraints", pins)
    _say(f"[3/4] {sum(1 for _ in requirements(pins))} packages")
    _uv(settings, "--requirements", pins, "--no-deps", "--no-build", "--find-links", WHEELS)
    _say("[4/4] rl-orchestrator, editable")
    _uv(settings, "--editable", ROOT, "--no-deps")
    count, megabytes = installed()
    _say(f"{count} packages, {megabytes:,.0f} MB, {time.monotonic() - started:.0f} s: {sys.prefix}")


def uv_settings(pip_config: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` with pip's settings under uv's names; a variable that is already set wins.

    `pip_config` has the lines of `pip config list`, such as `global.index-url='https://...'`. As pip does,
    prefer the environment (`:env:.`) to the `install` section and that to `global`.
    """
    found: dict[str, tuple[int, str]] = {}
    for line in pip_config:
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        rank = {"global": 0, "install": 1, ":env:": 2}.get(section)
        if rank is None or option not in UV_SETTINGS:
            continue
        variable = UV_SETTINGS[option]
        if variable not in found or found[variable][0] <= rank:
            found[variable] = (rank, " ".join(str(ast.literal_eval(value)).split()))
    settings = {variable: value for variable, (_, value) in found.items()}
    if "UV_INDEX" in settings:
        settings["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # pip looks at every index for every package
    if "UV_FIND_LINKS" in settings:
        settings["UV_FIND_LINKS"] = ",".join(settings["UV_FIND_LINKS"].split())
    return {**settings, **environ}


def requirements(file: Path) -> Iterable[str]:
    """The lines of a requirements file that name a package."""
    for line in file.read_text(encoding="utf-8").splitlines():
        requirement = line.partition("#")[0].strip()
        if requirement:
            yield requirement


def installed(search: Sequence[str] = sys.path) -> tuple[int, float]:
    """How many distributions `search` has, and the megabytes of their files."""
    found = list(distributions(path=list(search)))
    files = {Path(str(file.locate())) for one in found for file in one.files or ()}
    return len(found), sum(path.stat().st_size for path in files if path.is_file()) / 1e6


def _pip_config() -> list[str]:
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    return listing.stdout.splitlines()


def _uv(settings: Mapping[str, str], *arguments: str | Path) -> None:
    command = [Path(sys.executable).with_name("uv"), "pip", "install", "--python", sys.executable, *arguments]
    _run_command(list(map(str, command)), settings)


def _run(*arguments: str) -> None:
    _run_command([sys.executable, *arguments], os.environ)


def _run_command(command: list[str], environ: Mapping[str, str]) -> None:
    """Run `command`; end with its exit status if it fails. Its own output says why."""
    status = subprocess.run(command, env=dict(environ), check=False).returncode
    if status:
        sys.exit(status)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
