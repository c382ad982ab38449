"""Checks what a run needs on this machine: Python, packages, space, limits and folders, each with a remedy.

`orchestrator doctor` shows all checks. Before a run starts Ray on this machine, `require_local_ray` reports
problems that would otherwise appear only after half a minute, with an error that does not say what to do.
Importing this module is cheap: it imports neither torch nor Ray.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from orchestrator.errors import StateError
from orchestrator.training.cluster.environments import (
    Probe,
    default_interpreter,
    interpreter_problem,
    probe_interpreter,
)
from orchestrator.training.rollouts.engines import ENGINES, EngineEnvironment

GIB = 1 << 30
DISK_BYTES = 5 * GIB
SHARED_MEMORY_BYTES = GIB // 2
FILE_DESCRIPTORS = 1024
SHARED_MEMORY = Path("/dev/shm")
PYTHON = (3, 11)

SOCKET_PATH_BYTES = 107
"""The longest path of a Unix socket on Linux, without the terminating zero byte."""
RAY_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""The longest path that Ray appends to the temporary directory for a socket."""

SHOWN_PACKAGES = ("torch", "ray", "deepspeed", "transformers", "mlflow-skinny", "reasoning-gym")
EXTRAS = {
    "mlflow-ui": ("mlflow", "MLflow's web interface"),
    "gguf": ("gguf", "model=smollm2_135m and other GGUF files"),
    "postgres": ("psycopg", "a ledger in PostgreSQL"),
    "carbon": ("codecarbon", "cost carbon without --grams-per-kwh"),
}
"""Extras of this package: the distribution that one brings, and what it is for."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check: what was found and, if that is not sufficient, what to do."""

    check: str
    ok: bool
    detail: str
    remedy: str = ""


def machine_checks(output_dir: Path, environ: Mapping[str, str] = os.environ) -> list[Check]:
    """Run all checks. Nothing is started."""
    return [
        python(sys.version_info[:3]),
        *packages(_declared_requirements()),
        *extras(),
        *engines(),
        cpus(),
        shared_memory(SHARED_MEMORY_BYTES),
        file_descriptors(),
        temporary_directory(environ),
        home(environ),
        disk(output_dir),
        output_directory(output_dir),
        gpu(shutil.which),
    ]


def require_local_ray(object_store_bytes: int | None, environ: Mapping[str, str] = os.environ) -> None:
    """Raise StateError if Ray cannot be started on this machine. Names every obstacle and its remedy."""
    checks = [
        temporary_directory(environ),
        home(environ),
        file_descriptors(),
        shared_memory(object_store_bytes or SHARED_MEMORY_BYTES),
    ]
    obstacles = [f"{check.check}: {check.detail}. {check.remedy}" for check in checks if not check.ok]
    if obstacles:
        raise StateError("Ray cannot be started on this machine. " + " ".join(obstacles))


def python(found: tuple[int, ...]) -> Check:
    ok = found >= PYTHON
    return Check("python", ok, ".".join(map(str, found)), "" if ok else "Install Python 3.11 or newer.")


def packages(declared: Iterable[Requirement]) -> list[Check]:
    """One check for each of the large packages, and one for each other that is missing or out of range."""
    checks: list[Check] = []
    for requirement in declared:
        check = _package(requirement)
        if not check.ok or requirement.name in SHOWN_PACKAGES:
            checks.append(check)
    return sorted(checks, key=lambda check: (check.check not in SHOWN_PACKAGES, check.check))


def _package(requirement: Requirement) -> Check:
    remedy = f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return Check(requirement.name, False, "not installed", remedy)
    if not requirement.specifier.contains(found, prereleases=True):
        return Check(requirement.name, False, f"{found}, needed: {requirement.specifier}", remedy)
    return Check(requirement.name, True, found)


def _declared_requirements() -> list[Requirement]:
    try:
        declared = requires("rl-orchestrator") or []
    except PackageNotFoundError:  # a source tree on PYTHONPATH
        declared = list(SHOWN_PACKAGES)
    parsed = [Requirement(text) for text in declared]
    return [one for one in parsed if one.marker is None or one.marker.evaluate({"extra": ""})]


def extras() -> list[Check]:
    """Optional packages. None is needed, so a missing one is not an error."""
    checks: list[Check] = []
    for extra, (distribution, use) in EXTRAS.items():
        try:
            checks.append(Check(f"extra {extra}", True, version(distribution)))
        except PackageNotFoundError:
            remedy = f"pip install 'rl-orchestrator[{extra}]'"
            checks.append(Check(f"extra {extra}", True, f"not installed; optional, for {use}", remedy))
    return checks


def engines(probe: Probe = probe_interpreter) -> list[Check]:
    """The Python environments of engines. None is needed unless a run chooses its engine."""
    checks: list[Check] = []
    for name in ENGINES.names():
        environment = ENGINES.facts(name).environment
        if environment is not None:
            checks.append(_engine(name, environment, probe))
    return checks


def _engine(name: str, environment: EngineEnvironment, probe: Probe) -> Check:
    path = default_interpreter(environment)
    if not path.exists():
        detail = f"not installed; optional, for rollout.engine={name}"
        return Check(f"engine {name}", True, detail, environment.remedy)
    problem = interpreter_problem(path, environment, probe)
    if problem is not None:
        return Check(f"engine {name}", False, f"{path}: {problem}", environment.remedy)
    return Check(f"engine {name}", True, str(path))


def cpus() -> Check:
    count = len(os.sched_getaffinity(0))
    remedy = "" if count >= 2 else "With two or more CPUs, rollouts and updates run side by side."
    return Check("cpus", count >= 1, f"{count} usable", remedy)


def shared_memory(needed: int, path: Path = SHARED_MEMORY) -> Check:
    """Ray's object store and the weights of a version lie here. `needed` is in bytes."""
    remedy = "In a container: docker run --shm-size=2g. Otherwise remount /dev/shm, or free some of it."
    return _space("shared memory", path, needed, remedy)


def file_descriptors(needed: int = FILE_DESCRIPTORS) -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ok = soft == resource.RLIM_INFINITY or soft >= needed
    raisable = hard == resource.RLIM_INFINITY or hard >= needed
    how = f"Raise the limit: ulimit -n {needed if raisable else 65536}"
    remedy = how + ("." if raisable else f", as root, because the hard limit is {hard}.")
    return Check("file descriptors", ok, f"a limit of {soft}", "" if ok else f"{remedy} {needed} are needed.")


def temporary_directory(environ: Mapping[str, str]) -> Check:
    """Ray keeps its sockets below RAY_TMPDIR, TMPDIR or /tmp; the path of a Unix socket is short."""
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in environ), "")
    folder = environ.get(variable, "/tmp")
    length = len(os.fsencode(folder + RAY_SOCKET))
    if length > SOCKET_PATH_BYTES:
        allowed = SOCKET_PATH_BYTES - len(RAY_SOCKET)
        detail = f"{variable} is {len(os.fsencode(folder))} bytes long, but Ray's sockets allow {allowed}"
        return Check("temporary directory", False, detail, "Set a shorter one: export RAY_TMPDIR=/tmp.")
    if not os.access(_existing(Path(folder)), os.W_OK | os.X_OK):
        detail = f"{folder} cannot be written"
        return Check("temporary directory", False, detail, "Set RAY_TMPDIR to a folder that you can write.")
    return Check("temporary directory", True, folder)


def home(environ: Mapping[str, str]) -> Check:
    """Ray writes the token of a local cluster to ~/.ray."""
    remedy = "Set HOME to a folder that you can write: Ray keeps the token of its cluster there."
    folder = environ.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises without an entry
    if folder == "~":
        return Check("home", False, "HOME is not set and this user has no home", remedy)
    if not os.access(_existing(Path(folder)), os.W_OK | os.X_OK):
        return Check("home", False, f"{folder} cannot be written", remedy)
    return Check("home", True, folder)


def disk(output_dir: Path) -> Check:
    remedy = "Free some space, or set ORCHESTRATOR_OUTPUT_DIR to a folder on another disk."
    return _space("disk", _existing(output_dir), DISK_BYTES, remedy)


def output_directory(output_dir: Path) -> Check:
    path = _existing(output_dir)
    ok = os.access(path, os.W_OK | os.X_OK)
    remedy = "" if ok else f"{path} cannot be written: set ORCHESTRATOR_OUTPUT_DIR to a folder of yours."
    return Check("output directory", ok, str(output_dir), remedy)


def gpu(which: Callable[[str], str | None]) -> Check:
    """Found by device file: importing torch to ask it would take seconds."""
    devices = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    if devices:
        ok = which("nvidia-smi") is not None
        remedy = "" if ok else "Install the NVIDIA driver's tools (nvidia-smi)."
        return Check("gpu", ok, f"{len(devices)} NVIDIA", remedy)
    return Check("gpu", True, "none: runs use CPU slots (cluster.resource cpu)")


def _space(name: str, path: Path, needed: int, remedy: str) -> Check:
    if not path.exists():
        return Check(name, False, f"{path} is missing", remedy)
    free = shutil.disk_usage(path).free
    ok = free >= needed
    detail = f"{free / GIB:.1f} GiB free in {path}"
    return Check(name, ok, detail, "" if ok else f"{remedy} {needed / GIB:.1f} GiB are needed.")


def _existing(path: Path) -> Path:
    """`path`, or its nearest parent that exists."""
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path
