"""docs/reference/upstream-assumptions.md lists every private name of another library that the code uses."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import orchestrator

PACKAGE = Path(orchestrator.__file__).parent
PAGE = PACKAGE.parent / "docs" / "reference" / "upstream-assumptions.md"
LIBRARIES = {"torch", "deepspeed", "transformers", "peft", "ray", "mlflow", "hydra", "omegaconf"}
PUBLIC = {"_replace", "_asdict", "_fields", "_exit", "_make"}
"""Documented names that begin with an underscore: those of named tuples, and os._exit."""


def rows() -> list[tuple[str, list[str]]]:
    """(name, files) of the page's first table."""
    first = PAGE.read_text().partition("\n## Process-wide")[0]
    found = re.findall(r"^\| `([\w.]+)` \| (.*?) \|", first, re.MULTILINE)
    return [(name, re.findall(r"`([\w/]+\.py)`", files)) for name, files in found]


def resolve(name: str) -> object:
    """Import the longest module of a dotted name, then get its attributes."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def private_uses(tree: ast.Module, own: set[str]) -> Iterator[str]:
    """Private names of LIBRARIES that are imported, and private attributes that are not defined here."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in LIBRARIES:
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from (part for part in parts if part.startswith("_"))
        if isinstance(node, ast.Attribute) and re.match("_[a-zA-Z]", node.attr) and node.attr not in own:
            yield node.attr


def defined_here(trees: list[ast.Module]) -> set[str]:
    names: set[str] = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                names.add(node.attr)
        elif isinstance(node, ast.alias):
            names.add(node.name.rpartition(".")[2])
    return names


@pytest.mark.slow
def test_every_private_name_in_the_code_is_on_the_page() -> None:
    trees = [ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))]
    own = defined_here(trees) | PUBLIC
    used = {name for tree in trees for name in private_uses(tree, own)}
    page = PAGE.read_text()
    assert used >= {"_attn_implementation", "_disable_adapters"}, "the search itself must work"
    assert {name for name in used if name not in page} == set()


def test_every_name_on_the_page_is_used_in_the_listed_files() -> None:
    listed = rows()
    assert len(listed) >= 10
    for name, files in listed:
        assert files, name
        for file in files:
            assert name.rpartition(".")[2] in (PACKAGE / file).read_text(), f"{name} in {file}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, _ in rows()])
def test_the_name_still_exists(name: str) -> None:
    resolve(name)
