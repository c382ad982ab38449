from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.training import registry as registry_module
from orchestrator.training.registry import NoFacts, Registry


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Components on disk: `plain` registers itself, `heavy` with facts; `broken` cannot be
    imported, `empty` registers nothing.
    """
    name = f"parts_{tmp_path.name.replace('-', '_')}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from dataclasses import dataclass\n"
        "from orchestrator.training.registry import Registry\n"
        "@dataclass(frozen=True)\n"
        "class Facts:\n"
        "    kilos: int = 1\n"
        f"PARTS: Registry[str, Facts] = Registry('part', '{name}', Facts, key='group.part')\n"
    )
    (folder / "heavy.py").write_text(
        f"from {name} import PARTS, Facts\nPARTS.register('heavy', Facts(kilos=9))('a heavy part')\n"
    )
    (folder / "plain.py").write_text(f"from {name} import PARTS\nPARTS.register('plain')('a plain part')\n")
    (folder / "broken.py").write_text("import a_package_that_nobody_has\n")
    (folder / "empty.py").write_text("")
    (folder / "_private.py").write_text("")
    (folder / "config.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield name


def test_a_component_is_imported_on_first_use(package: str) -> None:
    parts = __import__(package).PARTS
    assert parts.get("plain") == "a plain part"
    assert parts.get("plain") == "a plain part"


def test_names_are_known_without_an_import(package: str) -> None:
    assert __import__(package).PARTS.names() == ["broken", "empty", "heavy", "plain"]


@pytest.mark.parametrize("name", ["nothing", "empty", "_private", "config", "plain.more", ""])
def test_an_unknown_name_is_rejected(name: str, package: str) -> None:
    with pytest.raises(ConfigError) as caught:
        __import__(package).PARTS.get(name)
    assert caught.value.key == "group.part"
    assert "plain" in caught.value.allowed


def test_a_component_with_a_missing_package_is_reported(package: str) -> None:
    with pytest.raises(ConfigError, match=r"ModuleNotFoundError: .*a_package_that_nobody_has") as caught:
        __import__(package).PARTS.get("broken")
    assert (caught.value.key, caught.value.value) == ("group.part", "broken")


def test_facts_are_those_of_the_registration_or_the_defaults(package: str) -> None:
    parts = __import__(package).PARTS
    assert (parts.facts("heavy").kilos, parts.facts("plain").kilos) == (9, 1)
    with pytest.raises(ConfigError):
        parts.facts("nothing")


def test_a_name_can_only_be_registered_once(package: str) -> None:
    parts: Registry[str, NoFacts] = Registry("part", package, NoFacts)
    parts.register("mine")("first")
    parts.register("mine")(parts.get("mine"))
    with pytest.raises(ValueError, match="part 'mine' is registered twice"):
        parts.register("mine")("second")


def test_another_package_adds_a_component_by_entry_point(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entry_points(group: str) -> list[EntryPoint]:
        return [EntryPoint("theirs", "os:sep", group), EntryPoint("gone", "os:no_such_name", group)]

    monkeypatch.setattr(registry_module, "entry_points", entry_points)
    parts: Registry[str, NoFacts] = Registry("part", package, NoFacts)
    assert "theirs" in parts.names()
    assert parts.get("theirs") == "/"
    with pytest.raises(ConfigError, match="no_such_name"):
        parts.get("gone")


def test_an_entry_point_whose_module_registers_itself_brings_its_facts(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_module.py").write_text(
        f"from {package} import PARTS, Facts\npart = PARTS.register('theirs', Facts(kilos=4))('their part')\n"
    )
    monkeypatch.setattr(
        registry_module, "entry_points", lambda group: [EntryPoint("theirs", "their_module:part", group)]
    )
    assert __import__(package).PARTS.facts("theirs").kilos == 4
