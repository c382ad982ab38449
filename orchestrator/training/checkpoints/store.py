"""Stores for copies of checkpoints outside the machine that wrote them: a directory or an S3 prefix.

A store belongs to one run, and only one process at a time may write to it. A put is atomic: the manifest is
written last, and only if no manifest of that name exists. `latest` fences off a second process that executes
the same run (for example a job that was restarted while its old process was still running): once one process
has written, the next put of the other one raises CheckpointConflictError, and that process must stop.

    <location>/<run id>/
        latest                              name and manifest digest of the newest put
        step-000040/manifest.json           as on disk
        step-000040/<digest>/loop.json      S3: files are stored under the digest of their manifest, so that
                                            two writers cannot overwrite each other's files; a directory does
                                            not need this, because it is renamed into place

All calls block, so call them in a thread. All raise CheckpointError.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from orchestrator.errors import CheckpointConflictError, CheckpointError, ConfigError
from orchestrator.training.checkpoints.format import (
    MANIFEST,
    complete,
    read_manifest,
    remove,
    step_of,
    sync_directory,
    verify,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef

LATEST = "latest"
CONFLICT_ATTEMPTS = 5
"""How often a conditional write is attempted while S3 answers 409 (a concurrent write of the same key)."""
DELETE_AT_ONCE = 1000


class CheckpointStore(Protocol):
    """Keeps the newest checkpoints of one run."""

    def put(self, checkpoint: Path) -> None:
        """Store a copy of the checkpoint under its name. Putting the same checkpoint again has no effect.

        Raises CheckpointConflictError if another process has put a checkpoint since this process last looked.
        """
        ...

    def newest(self) -> str | None:
        """The name of the checkpoint with the highest step; None if there is none. Later puts are checked for
        conflicts against what the store contained at this moment.
        """
        ...

    def fetch(self, name: str, into: Path) -> Path:
        """Copy the checkpoint to `into / name` and verify it. The copy appears there
        completely or not at all.
        """
        ...


def open_store(location: str, run_id: str, keep: int) -> CheckpointStore:
    """Open the store of a run. `location` is a directory, or `s3://bucket/prefix`; boto3 finds credentials,
    region and endpoint (`AWS_ENDPOINT_URL`) as usual. Makes no network request. Raises ConfigError for any
    other URL, and if boto3 rejects its settings.
    """
    if "://" not in location:
        return DirectoryStore(Path(location) / run_id, keep)
    parts = urlsplit(location)
    if parts.scheme != "s3" or not parts.netloc:
        raise ConfigError("checkpoint.store", location, "a directory, or s3://bucket/prefix")
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        client = boto3.client("s3")
    except (BotoCoreError, ValueError) as error:  # ValueError: the endpoint is not a URL
        raise ConfigError("checkpoint.store", location, "settings that boto3 accepts", str(error)) from error
    return S3Store(client, parts.netloc, f"{parts.path.strip('/')}/{run_id}".strip("/"), keep)


class DirectoryStore:
    """A `CheckpointStore` in a directory on a mounted file system. Reading and writing `latest` is not
    atomic, so two processes that write at the same instant are only detected if they put the same step.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory, self._keep = directory, keep
        self._seen: str | None = None
        self._looked = False

    def put(self, checkpoint: Path) -> None:
        """Copy the checkpoint, verify the copy and rename it into place."""
        verify(checkpoint)
        final = self._directory / checkpoint.name
        latest = _latest_json(checkpoint)
        with _disk_errors(f"{checkpoint.name} could not be copied to {self._directory}"):
            self._directory.mkdir(parents=True, exist_ok=True)
            current = self._read_latest()
            if self._looked and current not in (self._seen, latest):
                raise _conflict(self._directory, current)
            if (final / MANIFEST).exists():
                if (final / MANIFEST).read_bytes() != (checkpoint / MANIFEST).read_bytes():
                    raise _conflict(self._directory, current)
            else:
                _copy_verified(checkpoint, final)
            temporary = self._directory / f".{LATEST}"
            temporary.write_text(latest)
            temporary.replace(self._directory / LATEST)
            self._seen, self._looked = latest, True
            for old in complete(self._directory)[: -self._keep]:
                remove(old)

    def newest(self) -> str | None:
        """Find the newest checkpoint by the names in the directory."""
        with _disk_errors(f"{self._directory} could not be read"):
            self._seen, self._looked = self._read_latest(), True
            found = complete(self._directory)
        return found[-1].name if found else None

    def fetch(self, name: str, into: Path) -> Path:
        """Copy the checkpoint from the store and verify it."""
        with _disk_errors(f"{name} could not be copied from {self._directory}"):
            into.mkdir(parents=True, exist_ok=True)
            _copy_verified(self._directory / name, into / name)
        return into / name

    def _read_latest(self) -> str | None:
        with contextlib.suppress(FileNotFoundError):
            return (self._directory / LATEST).read_text()
        return None


class S3Store:
    """A `CheckpointStore` under `prefix` in a bucket of S3, or of a compatible server
    with conditional writes.
    """

    def __init__(
        self,
        client: S3Client,
        bucket: str,
        prefix: str,
        keep: int,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client, self._bucket, self._prefix, self._keep = client, bucket, prefix, keep
        self._sleep = sleep
        self._seen: str | None = None
        """The ETag of `latest` when this process last read or wrote it; None if it did not exist."""
        self._looked = False

    def put(self, checkpoint: Path) -> None:
        """Upload the files with checksums, then the manifest, then `latest`."""
        verify(checkpoint)
        content = (checkpoint / MANIFEST).read_bytes()
        latest = _latest_json(checkpoint).encode()
        with self._s3_errors(f"{checkpoint.name} could not be copied to {self._url()}"):
            if not self._looked:
                self._look()
            for name in read_manifest(content, checkpoint / MANIFEST):
                self._upload(checkpoint / name, f"{checkpoint.name}/{_digest(content)}/{name}")
            # A manifest that exists is either that of another process, or ours if S3's answer was lost.
            if not self._write_if(f"{checkpoint.name}/{MANIFEST}", content, None) and (
                self._read(f"{checkpoint.name}/{MANIFEST}")[0] != content
            ):
                raise _conflict(self._url(), checkpoint.name)
            if not self._write_if(LATEST, latest, self._seen):
                current, tag = self._read(LATEST)
                if current != latest:
                    raise _conflict(self._url(), current.decode(errors="replace"))
                self._seen = tag
            self._prune()

    def newest(self) -> str | None:
        """Find the newest checkpoint by the manifests under the prefix."""
        with self._s3_errors(f"{self._url()} could not be read"):
            self._look()
            names = self._names(self._keys())
        return names[-1] if names else None

    def fetch(self, name: str, into: Path) -> Path:
        """Download the checkpoint, verify it and rename it into place."""
        partial = into / f".{name}.partial"
        with self._s3_errors(f"{name} could not be copied from {self._url()}"):
            content, _ = self._read(f"{name}/{MANIFEST}")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            for file in read_manifest(content, f"{self._url()}/{name}/{MANIFEST}"):
                key = self._key(f"{name}/{_digest(content)}/{file}")
                self._client.download_file(self._bucket, key, str(partial / file))
            (partial / MANIFEST).write_bytes(content)
            _move_verified(partial, into / name)
        return into / name

    # -- one object

    def _upload(self, path: Path, name: str) -> None:
        self._client.upload_file(
            str(path), self._bucket, self._key(name), ExtraArgs={"ChecksumAlgorithm": "SHA256"}
        )

    def _write_if(self, name: str, content: bytes, etag: str | None) -> bool:
        """Write if the object has this ETag (None: if it does not exist). Returns False
        if it has another one.
        """
        from botocore.exceptions import ClientError

        condition: dict[str, Any] = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        checksum = base64.b64encode(hashlib.sha256(content).digest()).decode()
        for attempt in range(CONFLICT_ATTEMPTS):
            try:
                answer = self._client.put_object(
                    Bucket=self._bucket,
                    Key=self._key(name),
                    Body=content,
                    ChecksumSHA256=checksum,
                    **condition,
                )
            except ClientError as error:
                status = _status(error)
                if status == 412 or (status == 404 and etag is not None):
                    return False
                if status != 409 or attempt == CONFLICT_ATTEMPTS - 1:
                    raise
                self._sleep(0.1 * 2**attempt)
            else:
                if name == LATEST:
                    self._seen = answer["ETag"]
                return True
        raise AssertionError("the last attempt returns or raises")

    def _read(self, name: str) -> tuple[bytes, str]:
        """Content and ETag of an object."""
        answer = self._client.get_object(Bucket=self._bucket, Key=self._key(name))
        with contextlib.closing(answer["Body"]) as body:
            return body.read(), answer["ETag"]

    def _look(self) -> None:
        from botocore.exceptions import ClientError

        try:
            self._seen = self._client.head_object(Bucket=self._bucket, Key=self._key(LATEST))["ETag"]
        except ClientError as error:
            if _status(error) != 404:
                raise
            self._seen = None
        self._looked = True

    # -- all objects

    def _keys(self) -> list[str]:
        """All keys of the run, without the prefix."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._key("")
        )
        keys = [item.get("Key", "") for page in pages for item in page.get("Contents", [])]
        return [key.removeprefix(self._key("")) for key in keys]

    def _names(self, keys: Sequence[str]) -> list[str]:
        """Names of the checkpoints that have a manifest, by step."""
        steps: dict[str, int] = {}
        for key in keys:
            name, _, rest = key.partition("/")
            step = step_of(name)
            if rest == MANIFEST and step is not None:
                steps[name] = step
        return sorted(steps, key=lambda name: steps[name])

    def _prune(self) -> None:
        """Delete all but the newest `keep` checkpoints, manifests first, and older
        files without a manifest.
        """
        keys = self._keys()
        oldest_kept = min(step_of(name) or 0 for name in self._names(keys)[-self._keep :])
        old = [key for key in keys if _older(key, oldest_kept)]
        old.sort(key=lambda key: not key.endswith(f"/{MANIFEST}"))
        for start in range(0, len(old), DELETE_AT_ONCE):
            chunk: list[ObjectIdentifierTypeDef] = [
                {"Key": self._key(key)} for key in old[start : start + DELETE_AT_ONCE]
            ]
            answer = self._client.delete_objects(
                Bucket=self._bucket, Delete={"Objects": chunk, "Quiet": True}
            )
            if errors := answer.get("Errors"):
                raise CheckpointError(
                    f"{self._url()}/{errors[0].get('Key')} could not be deleted: {errors[0]}"
                )

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def _url(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}"

    @contextlib.contextmanager
    def _s3_errors(self, what: str) -> Generator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (Boto3Error, BotoCoreError, ClientError, OSError) as error:
            raise CheckpointError(f"{what}: {error}") from error


def _older(key: str, oldest_kept: int) -> bool:
    step = step_of(key.partition("/")[0])
    return step is not None and step < oldest_kept


def _status(error: Any) -> int:  # noqa: ANN401 - botocore's errors carry an untyped response
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _latest_json(checkpoint: Path) -> str:
    manifest = hashlib.sha256((checkpoint / MANIFEST).read_bytes()).hexdigest()
    return json.dumps({"checkpoint": checkpoint.name, "manifest_sha256": manifest})


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _conflict(where: object, found: object) -> CheckpointConflictError:
    return CheckpointConflictError(
        f"Another process writes checkpoints of this run to {where} (found {found}). This process must stop."
    )


def _copy_verified(source: Path, target: Path) -> None:
    """Copy only the files that the manifest lists. Links are never followed."""
    content = (source / MANIFEST).read_bytes()
    names = read_manifest(content, source / MANIFEST)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in names:
        shutil.copy2(source / name, partial / name, follow_symlinks=False)
    (partial / MANIFEST).write_bytes(content)
    _move_verified(partial, target)


def _move_verified(partial: Path, target: Path) -> None:
    try:
        verify(partial)
    except CheckpointError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(target, ignore_errors=True)  # it has no manifest: left over from an interrupted removal
    partial.rename(target)
    sync_directory(target.parent)


@contextlib.contextmanager
def _disk_errors(what: str) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{what}: {error}") from error
