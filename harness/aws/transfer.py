"""Files to S3 and back: nothing is sent twice, and what broke off goes on where it was.

An object carries the SHA-256 of its content as metadata, so one that is there already is known without reading it.
boto3's own transfer manager gives up a multipart upload that fails; here its id is kept until it is complete.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from containers.artifact import sha256_of
from harness.aws.errors import is_missing
from harness.aws.session import Aws
from harness.errors import HarnessError, NotFound, Refused
from harness.record import Record

SHA = "neuron-harness-sha256"
# [s3] parts of 5 MiB to 5 GiB, at most 10,000 of them; 64 MiB parts are good for 640 GB and for eight threads.
PART = 64 * 1024 * 1024
THREADS = 8
UPLOADS = "uploads.json"
DELETED_AT_ONCE = 1000  # [s3] keys a DeleteObjects request may name

OnBytes = Callable[[str, int, int], None]


def split(uri: str) -> tuple[str, str]:
    """s3://bucket/key as (bucket, key)."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def files_of(source: Path) -> list[tuple[str, Path]]:
    """(key relative to `source`, file) of every file below a directory; of a file its name."""
    if source.is_file():
        return [(source.name, source)]
    return sorted((p.relative_to(source).as_posix(), p) for p in source.rglob("*") if p.is_file())


class Transfer:
    """Uploads and downloads of one run; unfinished multipart uploads are in its record."""

    def __init__(self, aws: Aws, record: Record, on_bytes: OnBytes = lambda label, done, total: None) -> None:
        self.aws, self.record, self.on_bytes = aws, record, on_bytes
        self._uploads = threading.Lock()  # several jobs of a Neuron host share one Transfer

    def upload(self, source: Path, prefix: str, region: str = "") -> int:
        """A directory's files under `prefix`, or one file; returns how many bytes had to be sent."""
        return sum(self._put(path, f"{prefix.rstrip('/')}/{key}", region) for key, path in files_of(source))

    def _put(self, path: Path, uri: str, region: str) -> int:
        digest, size = sha256_of(path), path.stat().st_size
        there = self.head(uri, region)
        if there and there["ContentLength"] == size and there.get("Metadata", {}).get(SHA) == digest:
            return 0
        bucket, key = split(uri)
        extra: dict[str, Any] = {"Bucket": bucket, "Key": key, "Metadata": {SHA: digest}, **self._encryption(region)}
        if size <= PART:
            with path.open("rb") as body:
                self.aws.call("s3", "put_object", region, Body=body, **extra)
            self.on_bytes(path.name, size, size)
            return size

        def send(number: int, **where: Any) -> str:
            with path.open("rb") as handle:
                handle.seek((number - 1) * PART)
                body = handle.read(PART)
            return str(self.aws.call("s3", "upload_part", region, PartNumber=number, Body=body, **where)["ETag"])

        self._in_parts(uri, region, digest, size, extra, send)
        return size

    def _encryption(self, region: str) -> dict[str, str]:
        """A key encrypts in its own region alone."""
        profile = self.aws.profile
        key = (profile if region in ("", profile.region) else profile.serving).kms_key
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {}

    def head(self, uri: str, region: str = "") -> dict[str, Any] | None:
        """HeadObject, or None where there is no such object."""
        bucket, key = split(uri)
        try:
            found: dict[str, Any] = self.aws.call("s3", "head_object", region, Bucket=bucket, Key=key)
        except HarnessError as error:
            if is_missing(error):
                return None
            raise
        return found

    def _in_parts(
        self, uri: str, region: str, content: str, size: int, extra: dict[str, Any], send: Callable[..., str]
    ) -> None:
        """The parts that are not there yet, then CompleteMultipartUpload. Raises before that if a part fails.

        `content` says what is sent: an upload of something else under this name is given up. `send(number, Bucket=,
        Key=, UploadId=)` sends a part and returns its ETag.
        """
        bucket, key = split(uri)
        where = {"Bucket": bucket, "Key": key}
        upload_id, parts = self._resume(uri, region, content)
        if not upload_id:
            upload_id = str(self.aws.call("s3", "create_multipart_upload", region, **extra)["UploadId"])
            self._remember(uri, {"id": upload_id, "sha256": content, "region": region})
        missing = [n for n in range(1, -(-size // PART) + 1) if n not in parts]
        pool = ThreadPoolExecutor(THREADS)
        try:
            sent = pool.map(lambda number: (number, send(number, UploadId=upload_id, **where)), missing)
            for number, etag in sent:
                parts[number] = etag
                self.on_bytes(key.rpartition("/")[2], sum(min(PART, size - (n - 1) * PART) for n in parts), size)
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure or Ctrl-C only what is on its way is waited for
        made = {"Parts": [{"PartNumber": n, "ETag": parts[n]} for n in sorted(parts)]}
        self.aws.call("s3", "complete_multipart_upload", region, **where, UploadId=upload_id, MultipartUpload=made)
        self._remember(uri, None)

    def _resume(self, uri: str, region: str, digest: str) -> tuple[str, dict[int, str]]:
        """(upload id, ETag by part) of an upload of the same content that broke off; ("", {}) where there is none."""
        known = (self.record.read_json(UPLOADS) or {}).get(uri)
        if not known:
            return "", {}
        if known["sha256"] != digest:
            self.abort(uri)
            return "", {}
        bucket, key = split(uri)
        try:
            parts = self.aws.pages("s3", "list_parts", "Parts", region, Bucket=bucket, Key=key, UploadId=known["id"])
            # A part is stored whole or not at all, and S3 has checked it against the client's checksum.
            return str(known["id"]), {part["PartNumber"]: part["ETag"] for part in parts}
        except HarnessError as error:
            if is_missing(error):
                return "", {}
            raise

    def _remember(self, uri: str, value: dict[str, str] | None) -> None:
        with self._uploads:
            uploads = self.record.read_json(UPLOADS) or {}
            uploads.pop(uri, None)
            if value is not None:
                uploads[uri] = value
            self.record.write_json(UPLOADS, uploads)

    def abort(self, uri: str) -> None:
        """Give up an unfinished upload: its parts cost storage until somebody does."""
        known = (self.record.read_json(UPLOADS) or {}).get(uri)
        if known:
            bucket, key = split(uri)
            try:
                self.aws.call(
                    "s3", "abort_multipart_upload", known["region"], Bucket=bucket, Key=key, UploadId=known["id"]
                )
            except HarnessError as error:
                if not is_missing(error):
                    raise
            self._remember(uri, None)

    def abort_all(self) -> list[str]:
        """Give up every unfinished upload of the run; returns their URIs."""
        uris = list(self.record.read_json(UPLOADS) or {})
        for uri in uris:
            self.abort(uri)
        return uris

    def download(self, uri: str, target: Path, region: str = "") -> None:
        """One object into the file `target`: whole or not at all."""
        bucket, key = split(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.aws.call("s3", "download_file", region, Bucket=bucket, Key=key, Filename=str(target))

    def delete(self, prefix: str, region: str = "") -> int:
        """Every object under a prefix that ends with a slash; how many there were."""
        bucket, start = split(prefix)
        assert start.endswith("/"), f"{prefix} would take other names with it"
        keys = [
            o["Key"] for o in self.aws.pages("s3", "list_objects_v2", "Contents", region, Bucket=bucket, Prefix=start)
        ]
        for at in range(0, len(keys), DELETED_AT_ONCE):
            some = [{"Key": key} for key in keys[at : at + DELETED_AT_ONCE]]
            answer = self.aws.call(
                "s3", "delete_objects", region, Bucket=bucket, Delete={"Objects": some, "Quiet": True}
            )
            if errors := answer.get("Errors"):
                why = f"{errors[0].get('Code')}: {errors[0].get('Message')}"
                raise Refused(
                    f"{len(errors)} objects of {prefix} could not be deleted", why, code=errors[0].get("Code", "")
                )
        return len(keys)

    def copy(self, source: str, target: str, source_region: str, region: str) -> bool:
        """An object from one region's bucket to another's, by S3 itself; False where it is there already.

        Larger ones go in parts, and one that broke off goes on. Raises NotFound where there is no `source`.
        """
        there, here = self.head(target, region), self.head(source, source_region)
        if here is None:
            raise NotFound(f"there is no {source}", "somebody has deleted it")
        size, etag = int(here["ContentLength"]), str(here["ETag"]).strip('"')
        if there and there["ContentLength"] == size and there.get("Metadata", {}).get("from") == etag:
            return False
        bucket, key = split(target)
        extra = {"Bucket": bucket, "Key": key, "Metadata": {"from": etag}, **self._encryption(region)}
        # Another artifact put there meanwhile is not mixed into this one.
        origin = {"CopySource": dict(zip(("Bucket", "Key"), split(source), strict=True)), "CopySourceIfMatch": etag}
        if size <= PART:
            self.aws.call("s3", "copy_object", region, MetadataDirective="REPLACE", **extra, **origin)
            return True

        def send(number: int, **where: Any) -> str:
            span = f"bytes={(number - 1) * PART}-{min(number * PART, size) - 1}"
            more = {"PartNumber": number, "CopySourceRange": span, **where, **origin}
            return str(self.aws.call("s3", "upload_part_copy", region, **more)["CopyPartResult"]["ETag"])

        self._in_parts(target, region, etag, size, extra, send)
        return True

    def remove(self, uri: str, region: str) -> None:
        """One object; it need not be there."""
        bucket, key = split(uri)
        self.aws.call("s3", "delete_object", region, Bucket=bucket, Key=key)
