"""The contract of checkpoint stores on a directory and on moto's S3. tests/integration/test_s3_store.py runs
the same suite on a real S3 server.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from moto import mock_aws
from moto.s3.responses import S3Response

from orchestrator.errors import CheckpointConflictError, CheckpointError, ConfigError
from orchestrator.training.checkpoints.format import MANIFEST
from orchestrator.training.checkpoints.store import (
    CheckpointStore,
    DirectoryStore,
    S3Store,
    open_store,
)
from tests.contracts.checkpoint_store_contract import (
    CheckpointStoreContract,
    StoreUnderTest,
    make_checkpoint,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUCKET = "checkpoints"


class DirectoryUnderTest(StoreUnderTest):
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def open(self, keep: int = 2) -> CheckpointStore:
        return DirectoryStore(self._directory, keep)

    def damage(self, name: str, file: str) -> None:
        path = self._directory / name / file
        changed = bytearray(path.read_bytes())
        changed[0] ^= 1
        path.write_bytes(changed)

    def lose_manifest(self, name: str) -> None:
        (self._directory / name / MANIFEST).unlink()

    def break_down(self) -> None:
        self._directory.rename(self._directory.with_name("away"))
        self._directory.write_text("a file where a directory must be")


class S3UnderTest(StoreUnderTest):
    """`prefix` names one run in the bucket."""

    def __init__(self, client: S3Client, prefix: str) -> None:
        self.client, self.prefix = client, prefix

    def open(self, keep: int = 2) -> S3Store:
        return S3Store(self.client, BUCKET, self.prefix, keep, sleep=self._never_sleep)

    def listing(self) -> list[str]:
        listed = self.client.list_objects_v2(Bucket=BUCKET, Prefix=self.prefix)
        return [item.get("Key", "").removeprefix(f"{self.prefix}/") for item in listed.get("Contents", [])]

    def damage(self, name: str, file: str) -> None:
        (key,) = (key for key in self.listing() if key.startswith(name) and key.endswith(file))
        kept = self.client.get_object(Bucket=BUCKET, Key=f"{self.prefix}/{key}")["Body"].read()
        changed = bytes([kept[0] ^ 1]) + kept[1:]
        self.client.put_object(Bucket=BUCKET, Key=f"{self.prefix}/{key}", Body=changed)

    def lose_manifest(self, name: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=f"{self.prefix}/{name}/{MANIFEST}")

    def break_down(self) -> None:
        def refuse(**_: object) -> None:
            raise EndpointConnectionError(endpoint_url="http://nowhere")

        self.client.meta.events.register("before-send.s3", refuse)

    @staticmethod
    def _never_sleep(_: float) -> None:
        return None


class TestDirectoryStore(CheckpointStoreContract):
    @pytest.fixture
    def under_test(self, tmp_path: Path) -> StoreUnderTest:
        return DirectoryUnderTest(tmp_path / "store" / "run-1")


def one_at_a_time(write: Callable[..., Any]) -> Callable[..., Any]:
    """S3 evaluates a condition and writes atomically; moto checks first and writes later."""
    lock = threading.Lock()

    def locked(*arguments: Any) -> Any:
        with lock:
            return write(*arguments)

    return locked


@pytest.fixture(scope="module")
def session() -> Iterator[boto3.Session]:
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setattr(S3Response, "put_object", one_at_a_time(S3Response.put_object))
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        session = boto3.Session("testing", "testing", region_name="us-east-1")
        session.client("s3").create_bucket(Bucket=BUCKET)
        yield session


@pytest.fixture
def s3(session: boto3.Session, request: pytest.FixtureRequest) -> Iterator[S3UnderTest]:
    with contextlib.closing(session.client("s3")) as client:
        yield S3UnderTest(client, f"team/{request.node.name}/run-1")


class TestS3Store(CheckpointStoreContract):
    @pytest.fixture
    def under_test(self, s3: S3UnderTest) -> StoreUnderTest:
        return s3


def test_the_layout_in_s3(s3: S3UnderTest, tmp_path: Path) -> None:
    s3.open().put(make_checkpoint(tmp_path, 40))
    latest, *files, manifest = sorted(s3.listing())
    assert latest == "latest"
    assert manifest == "step-000040/manifest.json"
    digests = {key.split("/")[1] for key in files}
    assert len(digests) == 1
    assert {key.split("/", 2)[2] for key in files} == {"loop.json", "rank-0-of-1.bin"}
    head = s3.client.head_object(Bucket=BUCKET, Key=f"{s3.prefix}/{files[0]}", ChecksumMode="ENABLED")
    assert head.get("ChecksumSHA256")


def test_a_rejected_writer_changes_nothing_of_the_winners(s3: S3UnderTest, tmp_path: Path) -> None:
    s3.open().put(make_checkpoint(tmp_path / "mine", 40))
    before = {
        key: s3.client.head_object(Bucket=BUCKET, Key=f"{s3.prefix}/{key}")["ETag"] for key in s3.listing()
    }
    with pytest.raises(CheckpointConflictError):
        s3.open().put(make_checkpoint(tmp_path / "theirs", 40, b"other weights"))
    after = {
        key: s3.client.head_object(Bucket=BUCKET, Key=f"{s3.prefix}/{key}")["ETag"] for key in s3.listing()
    }
    assert before.items() <= after.items()


def test_runs_can_share_a_bucket(s3: S3UnderTest, tmp_path: Path) -> None:
    other = S3UnderTest(s3.client, f"{s3.prefix}0")
    s3.open(keep=1).put(make_checkpoint(tmp_path, 10))
    other.open(keep=1).put(make_checkpoint(tmp_path, 20))
    assert s3.open().newest() == "step-000010"
    assert other.open().newest() == "step-000020"


def test_files_of_an_interrupted_put_are_removed_later(s3: S3UnderTest, tmp_path: Path) -> None:
    store = s3.open(keep=1)
    store.put(make_checkpoint(tmp_path, 10))
    s3.client.put_object(Bucket=BUCKET, Key=f"{s3.prefix}/step-000005/abc/half", Body=b"half")
    store.put(make_checkpoint(tmp_path, 20))
    assert {key.split("/")[0] for key in s3.listing()} == {"latest", "step-000020"}


class Refusing:
    """Answers the first `times` writes of a key with an HTTP status before they reach the bucket."""

    def __init__(self, client: S3Client, key: str, status: int, times: int) -> None:
        self.asked, self._key, self._status, self._left = 0, key, status, times
        client.meta.events.register("before-call.s3.PutObject", self._answer)

    def _answer(self, params: dict[str, Any], **_: object) -> None:
        if not str(params["url_path"]).endswith(self._key):
            return
        self.asked += 1
        if self._left:
            self._left -= 1
            code = {"Error": {"Code": "Refused"}, "ResponseMetadata": {"HTTPStatusCode": self._status}}
            raise ClientError(code, "PutObject")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("key", [MANIFEST, "latest"])
def test_a_409_is_retried(key: str, s3: S3UnderTest, tmp_path: Path) -> None:
    refusing = Refusing(s3.client, key, 409, times=3)
    s3.open().put(make_checkpoint(tmp_path, 10))
    assert refusing.asked == 4
    assert s3.open().newest() == "step-000010"


def test_a_permanent_409_is_an_error(s3: S3UnderTest, tmp_path: Path) -> None:
    refusing = Refusing(s3.client, MANIFEST, 409, times=1000)
    with pytest.raises(CheckpointError, match="Refused"):
        s3.open().put(make_checkpoint(tmp_path, 10))
    assert refusing.asked == 5


def test_a_403_is_not_retried(s3: S3UnderTest, tmp_path: Path) -> None:
    refusing = Refusing(s3.client, MANIFEST, 403, times=1000)
    with pytest.raises(CheckpointError, match="Refused"):
        s3.open().put(make_checkpoint(tmp_path, 10))
    assert refusing.asked == 1


def test_a_missing_bucket_is_an_error(s3: S3UnderTest, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="NoSuchBucket"):
        S3Store(s3.client, "no-such-bucket", "run", keep=1).put(make_checkpoint(tmp_path, 10))


@pytest.mark.parametrize("key", [MANIFEST, "latest"])
def test_a_write_whose_response_was_lost_succeeds(key: str, s3: S3UnderTest, tmp_path: Path) -> None:
    """The write happened but its response was lost, and the retry gets a 412:
    our own write, not a conflict.
    """
    lost: list[str] = []

    def lose(http_response: Any, parsed: Any, **_: object) -> None:
        if key in str(getattr(http_response, "url", "")) and not lost:
            lost.append(key)
            raise EndpointConnectionError(endpoint_url="http://nowhere")

    store = s3.open()
    s3.client.meta.events.register("after-call.s3.PutObject", lose)
    checkpoint = make_checkpoint(tmp_path, 10)
    with pytest.raises(CheckpointError):
        store.put(checkpoint)
    store.put(checkpoint)
    assert s3.open().newest() == "step-000010"
    store.put(make_checkpoint(tmp_path, 20))


def test_only_one_of_many_writers_succeeds(s3: S3UnderTest, tmp_path: Path) -> None:
    stores = [s3.open() for _ in range(6)]
    checkpoints = [make_checkpoint(tmp_path / str(index), 10 + index) for index in range(6)]
    for store in stores:
        assert store.newest() is None
    barrier, outcomes = threading.Barrier(6), list[str]()

    def put(store: S3Store, checkpoint: Path) -> None:
        barrier.wait()
        try:
            store.put(checkpoint)
        except CheckpointConflictError:
            outcomes.append("refused")
        else:
            outcomes.append("won")

    threads = [threading.Thread(target=put, args=pair) for pair in zip(stores, checkpoints, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 5 + ["won"]


def test_a_location_is_a_directory_or_in_s3(
    s3: S3UnderTest, session: boto3.Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(str(tmp_path / "store"), "run-1", 2).put(make_checkpoint(tmp_path, 10))
    assert (tmp_path / "store" / "run-1" / "step-000010" / MANIFEST).exists()
    monkeypatch.setattr(boto3, "client", session.client)
    for location, prefix in ((f"s3://{BUCKET}/a/b/", "a/b/run-1"), (f"s3://{BUCKET}", "run-1")):
        open_store(location, "run-1", 2).put(tmp_path / "step-000010")
        assert S3UnderTest(s3.client, prefix).open().newest() == "step-000010"


@pytest.mark.parametrize("location", ["gs://bucket/prefix", "s3://", "s3:///prefix", "https://host/x"])
def test_other_locations_are_rejected(location: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(location, "run-1", 2)
    assert (caught.value.key, caught.value.value) == ("checkpoint.store", location)
