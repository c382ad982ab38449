import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from orchestrator.training import manifest
from orchestrator.training.manifest import RunFacts, build_manifest, folder_digest

FACTS = RunFacts("tiny_moe", "countdown", True, "wait", (("batch", "64 prompts"),))


def test_facts_are_read_back_from_a_manifest(tmp_path: Path) -> None:
    made = build_manifest(run_id="r", seed=0, data_sha256={}, model=None, facts=FACTS)
    assert RunFacts.from_manifest(json.loads(json.dumps(made))) == FACTS
    assert RunFacts.from_manifest({}) == RunFacts()


def test_the_manifest_has_the_provenance_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    made = build_manifest(run_id="run-1", seed=7, data_sha256={"train": "abc"}, model=tmp_path, facts=FACTS)
    assert (made["run_id"], made["seed"], made["data_sha256"]) == ("run-1", 7, {"train": "abc"})
    assert made["model"] == {"path": str(tmp_path), "files_sha256": folder_digest(tmp_path)}
    assert made["packages"]["torch"] == version("torch")
    assert made["machine"]["cpus"] >= 1
    assert made["facts"]["model"] == "tiny_moe"


def test_a_model_from_scratch_has_no_folder() -> None:
    assert build_manifest(run_id="r", seed=0, data_sha256={}, model=None, facts=RunFacts())["model"] is None


def test_the_digest_depends_on_names_and_contents(tmp_path: Path) -> None:
    def digest(**files: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, content in files.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return folder_digest(folder)

    original = digest(a="1", b="2")
    assert digest(b="2", a="1") == original
    assert (
        len({original, digest(a="2", b="1"), digest(a="1", c="2"), digest(a="1", b__b="2"), digest(a="1")})
        == 5
    )


def test_the_commit_and_uncommitted_changes_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    monkeypatch.setattr(manifest, "__file__", str(tmp_path / "manifest.py"))
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("-c", "user.name=n", "-c", "user.email=e@example.org", "commit", "-q", "-m", "first")
    found = build_manifest(run_id="r", seed=0, data_sha256={}, model=None, facts=RunFacts())["git"]
    assert len(found["commit"]) == 40
    assert found["uncommitted_changes"] is False
    (tmp_path / "file").write_text("2")
    assert (
        build_manifest(run_id="r", seed=0, data_sha256={}, model=None, facts=RunFacts())["git"][
            "uncommitted_changes"
        ]
        is True
    )


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)], ids=repr)
def test_outside_a_checkout_there_is_no_commit(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    assert build_manifest(run_id="r", seed=0, data_sha256={}, model=None, facts=RunFacts())["git"] is None


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "PACKAGES", ("a-package-that-nobody-has",))
    made = build_manifest(run_id="r", seed=0, data_sha256={}, model=None, facts=RunFacts())
    assert made["packages"] == {"a-package-that-nobody-has": None}
