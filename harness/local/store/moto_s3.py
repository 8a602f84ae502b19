"""moto's S3 over plain files: every object that moto holds is a file of the ObjectStore, and the other way round.

moto keeps an object's bytes in a temporary file of its own. Here they are in <state>/s3/<bucket>/<key> instead, the
only copy: jobs read it by hard link, what a job stores is shown to moto without being read, and after a restart moto
is told what lies there. What a plain file cannot hold (content type, user metadata, tags, the ETag of a multipart
upload) is in <state>/s3-meta. A key that is not a valid file name (`a//b`, `a` beside `a/b`, `folder/`) has its bytes
in <state>/s3-odd: clients see it, jobs do not.

Written against moto 5.2.5, which locks/harness.txt pins; tests/emulator/test_front.py checks it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from moto.s3 import models as s3
from moto.s3.models import FakeKey, FakeMultipart

from harness import files
from harness.local.store.objects import ObjectStore, link_or_copy

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
                    if builder.checksum_type == "COMPOSITE":
                        builder.addPart(part.value)
                    with part.lock:
                        part._value_buffer.seek(0)
                        shutil.copyfileobj(part._value_buffer, joined, IN_MEMORY)
                    digests += bytes.fromhex(part.etag.strip('"'))
                    last, count = part, count + 1
            if count == 0:
                raise s3.MalformedXML()
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        etag = f"{hashlib.md5(digests).hexdigest()}-{count}"  # noqa: S324 (S3's own)
        return target, etag, (builder.build() if builder.checksum_type == "COMPOSITE" else None)


PARTITION = "aws"


class SharedStore(ObjectStore):
    """The store below one directory, shown to moto's S3 backend of `account`."""

    def __init__(self, folder: Path, account: str) -> None:
        super().__init__(folder / "s3")
        self.meta, self.odd = folder / "s3-meta", folder / "s3-odd"
        self.account = account
        self._owners: dict[tuple[str, str], StoredKey] = {}
        self._lock = threading.RLock()
        shutil.rmtree(self.odd / "tmp", ignore_errors=True)  # old versions, uploads that were never completed
        for path in (self.root, self.meta, self.odd / "tmp"):
            path.mkdir(parents=True, exist_ok=True)
        for path in self.root.rglob(".*.partial"):
            path.unlink()
        StoredKey.store = JoinedMultipart.store = self
        s3.FakeKey, s3.FakeMultipart = StoredKey, JoinedMultipart
        self.backend = s3.s3_backends[account][PARTITION]

    def load(self, region: str) -> None:
        """Tell moto what lies here."""
        for folder in sorted(p for p in self.root.iterdir() if p.is_dir()):
            bucket = self._read(self.meta / folder.name / "bucket.json") or {}
            self.backend.create_bucket(folder.name, bucket.get("region", region))
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                self._adopt(folder.name, path.relative_to(folder).as_posix(), path)
            for side in (self.meta / folder.name).glob("*.json"):
                raw = self._read(side)
                if side.name != "bucket.json" and raw is not None:
                    self._take_metadata(folder.name, raw, side)

    def region_of(self, bucket: str) -> str:
        """Where moto has made the bucket."""
        found = self.backend.buckets.get(bucket)
        return str(found.region_name) if found is not None else ""

    # -- from moto

    def write(self, bucket: str, key: str, value: Any) -> Path:
        """Store bytes, a FileBytes or a finished partial file as an object; its path."""
        with self._lock:
            before = self._owners.get((bucket, key))
            if before is not None and before.path is not None and self.backend.buckets[bucket].is_versioned:
                aside = self.partial()
                link_or_copy(before.path, aside)
                before.path = aside
            if isinstance(value, Path):
                partial = value
            else:
                partial = self.partial()
                if isinstance(value, FileBytes):
                    link_or_copy(value.path, partial)
                else:
                    partial.write_bytes(value.encode() if isinstance(value, str) else value)
            return self._place(bucket, key, partial)

    def _place(self, bucket: str, key: str, partial: Path) -> Path:
        odd = self.odd / _digest(bucket, key)
        try:
            path = self.path(f"s3://{bucket}/{key}")
            if key.endswith("/") or key.startswith("/") or path.name.endswith(".partial"):
                raise ValueError(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial, path)
        except (ValueError, OSError):
            os.replace(partial, odd)
            return odd
        return path

    def partial(self) -> Path:
        """A new name on the store's file system."""
        return self.odd / "tmp" / uuid.uuid4().hex

    def owned(self, key: StoredKey) -> None:
        """`key` is the object's newest version."""
        with self._lock:
            self._owners[key.bucket_name, key.name] = key

    def disowned(self, key: StoredKey) -> None:
        """moto has dropped `key`: its file goes, unless a newer version has it."""
        with self._lock:
            who = (key.bucket_name, key.name)
            if self._owners.get(who) is key:
                del self._owners[who]
                self._side(*who).unlink(missing_ok=True)
                self._unlink(key)
            elif key.path is not None and key.path.parent == self.odd / "tmp":
                key.path.unlink(missing_ok=True)

    def _unlink(self, key: StoredKey) -> None:
        if key.path is None:
            return
        key.path.unlink(missing_ok=True)
        bucket = self.root / key.bucket_name
        for folder in key.path.parents:  # a prefix without objects is not there
            if folder == bucket or bucket not in folder.parents:
                return
            try:
                folder.rmdir()
            except OSError:
                return

    def after_request(self, bucket: str, key: str) -> None:
        """After moto has changed something: directories of buckets, metadata of the object."""
        with self._lock:
            for name, found in list(self.backend.buckets.items()):
                folder = self.root / name
                if not folder.is_dir():
                    folder.mkdir()
                    files.write_json(self.meta / name / "bucket.json", {"region": found.region_name})
            for folder in self.root.iterdir():
                if folder.name not in self.backend.buckets:
                    shutil.rmtree(folder)
                    shutil.rmtree(self.meta / folder.name, ignore_errors=True)
            found_key = self._owners.get((bucket, key))
            if found_key is not None:
                files.write_json(self._side(bucket, key), _metadata_of(found_key, self.backend))

    # -- from jobs

    def changed(self, uri: str) -> None:
        """A job has stored or deleted an object."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        path = self.path(uri)
        with self._lock:
            if bucket not in self.backend.buckets:
                return
            before = self._owners.pop((bucket, key), None)
            self._side(bucket, key).unlink(missing_ok=True)
            if path.is_file():
                self._adopt(bucket, key, path)
            elif before is not None:
                self.backend.buckets[bucket].keys.pop(key)

    def _adopt(self, bucket: str, key: str, path: Path) -> StoredKey:
        region = self.backend.buckets[bucket].region_name
        made = StoredKey.__new__(StoredKey)
        _init(made, key, self.account, region)
        made.bucket_name, made.path, made.contentsize = bucket, path, path.stat().st_size
        made.last_modified = datetime.fromtimestamp(path.stat().st_mtime, UTC).replace(tzinfo=None)
        made._version_id = "null"
        self.backend.buckets[bucket].keys.setlist(key, [made])
        self._owners[bucket, key] = made
        return made

    def _take_metadata(self, bucket: str, raw: dict[str, Any], side: Path) -> None:
        key = raw["key"]
        made = self._owners.get((bucket, key))
        odd = self.odd / _digest(bucket, key)
        if made is None and odd.is_file():
            made = self._adopt(bucket, key, odd)
        if made is None or made.contentsize != raw["size"]:
            side.unlink()
            return
        made._etag = raw["etag"]
        made._metadata.update(raw["metadata"])
        made.last_modified = datetime.fromisoformat(raw["last_modified"])
        if raw["tags"]:
            self.backend.put_object_tagging(made, raw["tags"])

    def _side(self, bucket: str, key: str) -> Path:
        return self.meta / bucket / f"{_digest(bucket, key)}.json"

    @staticmethod
    def _read(path: Path) -> dict[str, Any] | None:
        try:
            raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return raw


def _init(made: StoredKey, key: str, account: str, region: str) -> None:
    """moto's constructor with nothing in it: as a part, which writes no object."""
    FakeKey.__init__(made, key, b"", account, region)
    made._value_buffer.close()


def _metadata_of(key: StoredKey, backend: Any) -> dict[str, Any]:
    return {
        "key": key.name,
        "size": key.contentsize,
        "etag": key.etag.strip('"'),
        "metadata": dict(key.metadata),
        "last_modified": key.last_modified.isoformat(),
        "tags": backend.tagger.get_tag_dict_for_resource(key.arn),
    }


def _digest(bucket: str, key: str) -> str:
    return hashlib.sha256(f"{bucket}/{key}".encode()).hexdigest()
