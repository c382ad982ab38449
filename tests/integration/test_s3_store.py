"""The contract of checkpoint stores on a real S3 server (SeaweedFS) that checks keys and signatures."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from orchestrator.errors import CheckpointError
from orchestrator.training.checkpoints.store import S3Store
from tests.contracts.checkpoint_store_contract import (
    CheckpointStoreContract,
    StoreUnderTest,
    make_checkpoint,
)
from tests.contracts.test_checkpoint_store import BUCKET, S3UnderTest
from tests.support.ports import quiet_ports

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = pytest.mark.slow

WEED = Path(sys.executable).with_name("weed")
IDENTITIES = {
    "identities": [
        {
            "name": "run",
            "credentials": [{"accessKey": "run", "secretKey": "secret"}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
    ]
}
READY_SECONDS = 300.0


def client_of(endpoint: str, secret: str = "secret") -> S3Client:
    session = boto3.Session("run", secret, region_name="us-east-1")
    return session.client("s3", endpoint_url=endpoint)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("seaweed")
    (folder / "identities.json").write_text(json.dumps(IDENTITIES))
    master, volume, filer, s3 = quiet_ports(4, also=10_000)  # the gRPC port of each
    command = [
        str(WEED),
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-master.port={master}",
        "-master.volumeSizeLimitMB=64",
        f"-volume.port={volume}",
        "-volume.max=0",
        f"-filer.port={filer}",
        "-s3",
        f"-s3.port={s3}",
        f"-s3.config={folder / 'identities.json'}",
    ]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        url = f"http://127.0.0.1:{s3}"
        wait_until_ready(url, server, folder / "log")
        yield url
    finally:
        server.kill()  # an orderly shutdown would take half a minute
        server.wait()


def wait_until_ready(url: str, server: subprocess.Popen[Any], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    with contextlib.closing(client_of(url)) as client:
        while True:
            try:
                client.create_bucket(Bucket=BUCKET)
            except (BotoCoreError, ClientError) as error:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"no S3 server: {error}\n{log.read_text()[-2000:]}") from error
                time.sleep(0.2)
            else:
                return


@pytest.fixture(scope="module")
def session() -> boto3.Session:
    return boto3.Session("run", "secret", region_name="us-east-1")


@pytest.fixture
def s3(session: boto3.Session, endpoint: str, tmp_path: Path) -> Iterator[S3UnderTest]:
    with contextlib.closing(session.client("s3", endpoint_url=endpoint)) as client:
        yield S3UnderTest(client, tmp_path.name)


class TestS3Server(CheckpointStoreContract):
    @pytest.fixture
    def under_test(self, s3: S3UnderTest) -> StoreUnderTest:
        return s3


def test_a_multipart_upload(s3: S3UnderTest, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "here", 10, b"0123456789" * 2000)
    assert (checkpoint / "rank-0-of-1.bin").stat().st_size > 2 * 8 * 1024**2
    s3.open().put(checkpoint)
    fetched = s3.open().fetch("step-000010", tmp_path / "there")
    assert (fetched / "rank-0-of-1.bin").read_bytes() == b"0123456789" * 2_000_000


def test_unknown_keys_are_an_error(endpoint: str, tmp_path: Path) -> None:
    with contextlib.closing(client_of(endpoint, secret="wrong")) as client:
        store = S3Store(client, BUCKET, "run", keep=1)
        with pytest.raises(CheckpointError, match=r"403|SignatureDoesNotMatch|Forbidden"):
            store.newest()
        with pytest.raises(CheckpointError, match=r"403|SignatureDoesNotMatch|Forbidden"):
            store.put(make_checkpoint(tmp_path, 10))


def test_an_unreachable_server_is_an_error() -> None:
    with socket.socket() as taken:  # so that no process listens there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with (
            contextlib.closing(client_of(url)) as client,
            pytest.raises(CheckpointError, match="could not be read"),
        ):
            S3Store(client, BUCKET, "run", keep=1).newest()
