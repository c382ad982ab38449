from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.training import registry as registry_module
from orchestrator.training.registry import Registry


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Parts on disk: `plain` registers itself, `broken` can't be imported, `empty` forgets to."""
    name = f"parts_{tmp_path.name.replace('-', '_')}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from orchestrator.training.registry import Registry\n"
        f"PARTS: Registry[str] = Registry('part', package='{name}')\n"
    )
    (folder / "plain.py").write_text(f"from {name} import PARTS\nPARTS.register('plain')('a plain part')\n")
    (folder / "broken.py").write_text("import a_package_that_nobody_has\n")
    (folder / "empty.py").write_text("")
    (folder / "_private.py").write_text("")
    (folder / "config.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield name


def test_a_part_is_imported_when_it_is_asked_for(package: str) -> None:
    parts = __import__(package).PARTS
    assert parts.get("plain") == "a plain part"
    assert parts.get("plain") == "a plain part"


def test_names_are_known_without_an_import(package: str) -> None:
    assert __import__(package).PARTS.names() == ["broken", "empty", "plain"]


@pytest.mark.parametrize("name", ["nothing", "empty", "_private", "config", "plain.more", ""])
def test_a_name_without_a_part(name: str, package: str) -> None:
    with pytest.raises(ConfigError) as caught:
        __import__(package).PARTS.get(name)
    assert caught.value.key == "part"
    assert "plain" in caught.value.allowed


def test_a_part_that_lacks_a_package_says_so(package: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="a_package_that_nobody_has"):
        __import__(package).PARTS.get("broken")


def test_a_name_is_taken_once(package: str) -> None:
    parts: Registry[str] = Registry("part", package)
    parts.register("mine")("first")
    parts.register("mine")(parts.get("mine"))
    with pytest.raises(ValueError, match="part 'mine' is registered twice"):
        parts.register("mine")("second")


def test_another_package_adds_a_part_by_entry_point(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("theirs", "os:sep", "orchestrator.part")

    def entry_points(group: str, name: str = "theirs") -> list[EntryPoint]:
        return [point] if (group, name) == ("orchestrator.part", "theirs") else []

    monkeypatch.setattr(registry_module, "entry_points", entry_points)
    parts: Registry[str] = Registry("part", package)
    assert "theirs" in parts.names()
    assert parts.get("theirs") == "/"
