"""moto's S3 keys and multipart uploads over plain files: what objects.py gives moto in the place of its own classes.

Written against moto 5.2.5, which locks/harness.txt pins; tests/emulator/test_front.py holds it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from moto.s3 import models as s3
from moto.s3.models import FakeKey, FakeMultipart

# Above this an answer is read from the file piece by piece instead of being held in memory.
IN_MEMORY = 1 << 20


class Store(Protocol):
    """What a key needs of the store that its bytes are in (objects.SharedStore)."""

    def write(self, bucket: str, key: str, value: Any) -> Path:
        """Store bytes, a FileBytes or a finished partial file as an object; its path."""

    def partial(self) -> Path:
        """A new name on the store's file system."""

    def owned(self, key: StoredKey) -> None:
        """`key` is the object's newest version."""

    def disowned(self, key: StoredKey) -> None:
        """moto has dropped `key`."""


class FileBytes:
    """What moto takes for an object's bytes: a length, slices, pieces. The file stays open while it is read."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._size = os.fstat(self._file.fileno()).st_size
        self.path = path

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        return os.pread(self._file.fileno(), max(0, stop - start), start)

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, self._size, IN_MEMORY):
            yield self[start : start + IN_MEMORY]

    def close(self) -> None:
        """Werkzeug calls it when the response has been sent."""
        self._file.close()


class StoredKey(FakeKey):  # type: ignore[misc]
    """An object of moto's whose bytes are a file of the store; a part of an upload stays moto's."""

    store: Store
    path: Path | None = None
    _etag: str | None
    disposed: bool

    @property
    def value(self) -> Any:
        """The bytes, or what stands in for many of them."""
        if self.path is None:
            return super().value
        return self.path.read_bytes() if self.contentsize <= IN_MEMORY else FileBytes(self.path)

    @value.setter
    def value(self, new: Any) -> None:
        if self.bucket_name is None:  # a part of a multipart upload
            FakeKey.value.fset(self, bytes(new[:]) if isinstance(new, FileBytes) else new)
            return
        self._value_buffer.close()
        self.path = self.store.write(self.bucket_name, self.name, new)
        self.contentsize = self.path.stat().st_size
        self.store.owned(self)

    @property
    def etag(self) -> str:
        """MD5 of the bytes, computed when it is first asked for: what a job stored may never be listed."""
        if self._etag is None and self.path is not None:
            with self.path.open("rb") as handle:
                self._etag = hashlib.file_digest(handle, "md5").hexdigest()
        return str(super().etag)

    def dispose(self, garbage: bool = False) -> None:
        """moto has let go of this version; at the end of the process (`garbage`) the file stays."""
        if self.path is not None:
            if not garbage and not self.disposed:
                self.store.disowned(self)
            self.disposed = True
        super().dispose(False)


class JoinedMultipart(FakeMultipart):  # type: ignore[misc]
    """A multipart upload whose parts are joined on the disk, not in memory."""

    store: Store

    def complete(self, body: Iterator[tuple[int, str]]) -> tuple[Any, str, Any]:
        """The file of all parts, the ETag and the checksum; raises moto's errors for parts that do not fit."""
        algorithm, kind = (self.metadata.get(f"x-amz-checksum-{n}") for n in ("algorithm", "type"))
        builder = s3.MultipartChecksumBuilder(algorithm, kind)
        target = self.store.partial()
        digests, count, last = b"", 0, None
        try:
            with target.open("wb") as joined:
                for number, etag in body:
                    part = self.parts.get(number)
                    if part is None or part.etag.strip('"') != etag.strip('"'):
                        raise s3.InvalidPart()
                    if last is not None and last.contentsize < s3.S3_UPLOAD_PART_MIN_SIZE:
                        raise s3.EntityTooSmall()
                    data = part.value
                    joined.write(data)
                    if builder.checksum_type == "COMPOSITE":
                        builder.addPart(data)
                    digests += bytes.fromhex(part.etag.strip('"'))
                    last, count = part, count + 1
            if count == 0:
                raise s3.MalformedXML()
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        etag = f"{hashlib.md5(digests).hexdigest()}-{count}"  # noqa: S324 (S3's own)
        return target, etag, (builder.build() if builder.checksum_type == "COMPOSITE" else None)
