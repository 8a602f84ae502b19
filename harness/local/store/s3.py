"""Objects in S3, for containers on this host: the object store of platform `ec2` where there is an AWS profile.

Every object that is stored goes to S3 at once, and what a container reads comes from there; the directory below
`root` is a copy by which nothing is sent or fetched twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from containers.artifact import sha256_of
from harness.aws.errors import is_missing
from harness.aws.transfer import SHA, Transfer, split
from harness.errors import HarnessError, NotFound
from harness.local.store.objects import ObjectStore


class S3Store(ObjectStore):
    """The buckets that `transfer`'s credentials reach, in its profile's region."""

    def __init__(self, root: Path, transfer: Transfer) -> None:
        super().__init__(root)
        self.transfer, self.aws = transfer, transfer.aws

    def has_bucket(self, name: str) -> bool:
        """HeadBucket."""
        try:
            self.aws.call("s3", "head_bucket", Bucket=name)
        except HarnessError as error:
            if is_missing(error):
                return False
            raise
        return True

    def changed(self, uri: str) -> None:
        """Send the object, or delete it; what is there with the same content is not sent."""
        path = self.path(uri)
        if path.is_file():
            self.transfer.upload(path, uri.rpartition("/")[0])
            return
        bucket, key = split(uri)
        self.aws.call("s3", "delete_object", Bucket=bucket, Key=key)

    def fetch(self, uri: str) -> Path:
        """The object's file, of the content that S3 has. Raises NotFound."""
        found = self.transfer.head(uri)
        if found is None:
            raise NotFound(f"no object {uri}")
        path = self.path(uri)
        if not _same(path, found):
            self.transfer.download(uri, path)  # beside it and renamed: it may be a hard link to a container's file
        return path

    def objects(self, prefix: str) -> Iterator[tuple[str, Path]]:
        """As ObjectStore.objects, of what S3 has."""
        bucket, start = split(prefix)
        above = start.rpartition("/")[0]
        for item in self.aws.pages("s3", "list_objects_v2", "Contents", Bucket=bucket, Prefix=start):
            key = str(item["Key"])
            if key.endswith("/"):
                continue
            below = start.endswith("/") or key.startswith(f"{start}/")
            name = key[len(start) :].lstrip("/") if below else key[len(above) :].lstrip("/")
            yield name, self.fetch(f"s3://{bucket}/{key}")

    def files(self, prefix: str) -> Iterator[tuple[str, Path]]:
        """(key relative to `prefix`, file) of every object that S3 has under it; an object's URI gives its name."""
        bucket, start = split(prefix.rstrip("/"))
        for item in self.aws.pages("s3", "list_objects_v2", "Contents", Bucket=bucket, Prefix=start):
            key = str(item["Key"])
            if key == start:
                yield key.rpartition("/")[2], self.fetch(f"s3://{bucket}/{key}")
            elif key.startswith(f"{start}/") and not key.endswith("/"):
                yield key[len(start) + 1 :], self.fetch(f"s3://{bucket}/{key}")


def _same(path: Path, found: dict[str, Any]) -> bool:
    """Whether the copy is the object: by the SHA-256 that our uploads carry; without one it is fetched anew."""
    known = found.get("Metadata", {}).get(SHA)
    return path.is_file() and path.stat().st_size == found["ContentLength"] and sha256_of(path) == known
