"""Which checkpoints are accepted. Names from a manifest become paths, so they must be plain file names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import CheckpointError, CheckpointFormatError
from orchestrator.training.checkpoints.format import (
    LOOP_STATE,
    MANIFEST,
    commit,
    is_plain_name,
    read_manifest,
    verify,
)
from orchestrator.training.checkpoints.store import DirectoryStore, S3Store

HOSTILE = [
    "../up.txt",
    "../../../up.txt",
    "/abs/file",
    "a/b",
    "a\\b",
    "",
    ".",
    "..",
    ".hidden",
    "a\0b",
    "a\nb",
    "x" * 256,
    MANIFEST,
]


def manifest(*names: str) -> bytes:
    files = {name: {"bytes": 0, "sha256": ""} for name in (LOOP_STATE, *names)}
    return json.dumps({"format": 1, "step": 1, "files": files}).encode()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_manifest_with_an_unsafe_file_name_is_rejected(name: str) -> None:
    with pytest.raises(CheckpointError, match="not a plain file name"):
        read_manifest(manifest(name), "manifest")


@given(st.text(alphabet="a_.-/\\\0", max_size=5))
def test_an_accepted_name_cannot_escape_its_directory(name: str) -> None:
    if is_plain_name(name):
        assert (Path("/here") / name).resolve().parent == Path("/here")


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"format": 1, "files": [1]}', b"[" * 100_000])
def test_a_malformed_manifest_is_rejected(content: bytes) -> None:
    with pytest.raises(CheckpointError):
        read_manifest(content, "manifest")


@pytest.mark.parametrize("fields", [{"files": {}}, {"files": {"a/b": {}}}, {"shards": []}])
def test_a_manifest_of_another_version_is_reported_as_such(fields: dict[str, object]) -> None:
    with pytest.raises(
        CheckpointFormatError, match=r"manifest has format 2, and this version .* reads format 1"
    ):
        read_manifest(json.dumps({"format": 2, **fields}).encode(), "manifest")


class _Bucket:
    """The part of S3 that a download uses."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.downloads: list[str] = []

    def get_object(self, **_: object) -> dict[str, Any]:
        from io import BytesIO

        return {"Body": BytesIO(self._content), "ETag": "x"}

    def download_file(self, bucket: str, key: str, path: str) -> None:
        self.downloads.append(path)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("from the bucket")


@pytest.mark.parametrize("name", ["../../../up.txt", "absolute"])
def test_a_hostile_bucket_writes_no_file(tmp_path: Path, name: str) -> None:
    name = str(tmp_path / "absolute") if name == "absolute" else name
    bucket = _Bucket(manifest(name))
    store = S3Store(cast(Any, bucket), "bucket", "prefix", keep=1)
    into = tmp_path / "a" / "b" / "checkpoints"
    with pytest.raises(CheckpointError):
        store.fetch("step-000001", into)
    assert bucket.downloads == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_download_that_does_not_match_its_digest_never_becomes_visible(tmp_path: Path) -> None:
    store = S3Store(cast(Any, _Bucket(manifest("rank-0"))), "bucket", "prefix", keep=1)
    with pytest.raises(CheckpointError, match="differs from its manifest"):
        store.fetch("step-000001", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_a_stored_checkpoint_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    partial = tmp_path / "store" / ".partial"
    partial.mkdir(parents=True)
    (partial / "rank-0").write_text("secret")
    commit(partial, tmp_path / "store" / "step-000001", {})
    stored = tmp_path / "store" / "step-000001" / "rank-0"
    stored.unlink()
    stored.symlink_to(secret)
    with pytest.raises(CheckpointError, match="rank-0 differs from its manifest"):
        verify(stored.parent)
    with pytest.raises(CheckpointError, match="rank-0 differs from its manifest"):
        DirectoryStore(tmp_path / "store", keep=1).fetch("step-000001", tmp_path / "here")
    assert list((tmp_path / "here").iterdir()) == []
