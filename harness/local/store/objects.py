"""The local object store: s3://bucket/key as files below one directory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from harness.errors import NotFound


class ObjectStore:
    """Objects are hard links where the file system allows it, so a model is stored once however often it is used."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, uri: str) -> Path:
        """The file or prefix directory of `uri`. Raises ValueError for what is not an S3 URI or leaves the store."""
        if not uri.startswith("s3://"):
            raise ValueError(f"{uri!r} is not an s3:// URI")
        parts = uri.removeprefix("s3://").strip("/").split("/")
        if any(p in ("", ".", "..") or "\0" in p for p in parts):
            raise ValueError(f"{uri!r} has an empty, '.' or '..' part")
        return self.root.joinpath(*parts)

    def has_bucket(self, name: str) -> bool:
        """Whether there is a bucket of that name."""
        return (self.root / name).is_dir()

    def changed(self, uri: str) -> None:
        """Called after the object `uri` was stored or deleted; for whoever keeps a list of objects."""

    def fetch(self, uri: str) -> Path:
        """The file of the object `uri`. Raises NotFound."""
        path = self.path(uri)
        if not path.is_file():
            raise NotFound(f"no object {uri}")
        return path

    def put_file(self, source: Path, uri: str, copy: bool = False) -> None:
        """Store `source` as the object `uri`, replacing what was there in one step.

        `copy` for a file that its writer may still change in place.
        """
        target = self.path(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        partial.unlink(missing_ok=True)
        try:
            if copy:
                before = source.stat().st_mtime_ns
                shutil.copyfile(source, partial)
                os.utime(partial, ns=(before, before))  # what tells a later call that this version is stored
            else:
                link_or_copy(source, partial)
            os.replace(partial, target)
        finally:
            # rename() does nothing where both names are links to one file already.
            partial.unlink(missing_ok=True)
        self.changed(uri)

    def put_tree(self, source: Path, prefix: str) -> None:
        """Store every file below `source` under `prefix`."""
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            self.put_file(path, f"{prefix.rstrip('/')}/{path.relative_to(source).as_posix()}")

    def mirror(self, source: Path | Sequence[Path], prefix: str, copy: bool = False) -> None:
        """Make `prefix` hold what `source` holds; what is gone there goes here, after the new is in place.

        Several sources are laid over each other. With `copy` only files that have changed are stored again.
        """
        folders = [source] if isinstance(source, Path) else source
        found: dict[str, Path] = {}
        for folder in folders:
            found.update({p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()})
        for key, path in found.items():
            uri = f"{prefix.rstrip('/')}/{key}"
            if not (copy and self._stored(path, self.path(uri))):
                with suppress(FileNotFoundError) if copy else nullcontext():  # its writer may have deleted it
                    self.put_file(path, uri, copy)
        for key, path in list(self.files(prefix)):
            if key not in found:
                path.unlink()
                self.changed(f"{prefix.rstrip('/')}/{key}")

    @staticmethod
    def _stored(source: Path, target: Path) -> bool:
        """Whether a copy of `source` as it is now is at `target`."""
        try:
            here, there = source.stat(), target.stat()
        except FileNotFoundError:
            return False
        return here.st_size == there.st_size and here.st_mtime_ns == there.st_mtime_ns

    def files(self, prefix: str) -> Iterator[tuple[str, Path]]:
        """(key relative to `prefix`, file) of every object under it; an object's own URI gives its name."""
        root = self.path(prefix)
        if root.is_file():
            yield root.name, root
        for path in sorted(root.rglob("*")) if root.is_dir() else []:
            if path.is_file() and not path.name.endswith(".partial"):
                yield path.relative_to(root).as_posix(), path

    def objects(self, prefix: str) -> Iterator[tuple[str, Path]]:
        """(name, file) of every object whose key begins with `prefix`, as S3DataType S3Prefix means it.

        `.../train` also takes train.csv and train2/b.csv beside train/a.csv; names are those below the prefix, or
        (unverified) from its last slash on where a key goes on with another character.
        """
        yield from self.files(prefix)
        root = self.path(prefix)
        if prefix.endswith("/") or root.parent == self.root or not root.parent.is_dir():
            return
        for beside in sorted(root.parent.iterdir()):
            if beside.name != root.name and beside.name.startswith(root.name):
                uri = f"{prefix.rpartition('/')[0]}/{beside.name}"
                for key, path in self.files(uri):
                    yield (key if beside.is_file() else f"{beside.name}/{key}"), path

    def region_of(self, bucket: str) -> str:
        """A bucket's region; empty where it is not known."""
        del bucket
        return ""

    def download(self, prefix: str, folder: Path, copy: bool = False) -> int:
        """Every object that begins with `prefix` into `folder`; returns how many. Raises NotFound for none.

        `copy` where the reader may change the files in place: a link would change the object.
        """
        count = 0
        for key, path in self.objects(prefix):
            target = folder / key
            target.parent.mkdir(parents=True, exist_ok=True)
            if copy:
                shutil.copyfile(path, target)
            else:
                link_or_copy(path, target)
            count += 1
        if count == 0:
            raise NotFound(f"no object under {prefix}")
        return count


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link, or a copy where the two are on different file systems."""
    try:
        os.link(os.path.realpath(source), target)  # of a link its file: a relative one would lead nowhere
    except OSError:
        shutil.copyfile(source, target)
