"""Resources of one kind by region and name: in memory to answer at once, each in a file of its own to survive."""

from __future__ import annotations

import copy
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Document = dict[str, Any]


class Table:
    """Files are written beside their name and renamed: after a crash each holds its last state or the one before.

    Names come from requests that botocore's patterns have let through, so they are safe as file names.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._rows: dict[tuple[str, str], Document] = {}
        for partial in folder.glob("*/.*.partial"):
            partial.unlink()
        for path in sorted(folder.glob("*/*.json")):
            self._rows[path.parent.name, path.stem] = json.loads(path.read_text(encoding="utf-8"))

    def get(self, region: str, name: str) -> Document | None:
        """A copy of the document; None where there is none."""
        with self._lock:
            row = self._rows.get((region, name))
            return copy.deepcopy(row) if row is not None else None

    def add(self, region: str, name: str, document: Document) -> bool:
        """Store a new document; False where the name is taken."""
        with self._lock:
            if (region, name) in self._rows:
                return False
            self._write(region, name, copy.deepcopy(document))
            return True

    @contextmanager
    def changing(self, region: str, name: str) -> Iterator[Document]:
        """Change a document under the table's lock; it is written at the end. Raises KeyError where it is gone."""
        with self._lock:
            row = copy.deepcopy(self._rows[region, name])
            yield row
            self._write(region, name, row)

    def delete(self, region: str, name: str) -> None:
        with self._lock:
            self._rows.pop((region, name), None)
            self._path(region, name).unlink(missing_ok=True)

    def rows(self, region: str | None = None) -> list[tuple[str, str, Document]]:
        """(region, name, a copy of the document), of one region or of all."""
        with self._lock:
            return [(r, n, copy.deepcopy(d)) for (r, n), d in self._rows.items() if region in (None, r)]

    def _path(self, region: str, name: str) -> Path:
        return self.folder / region / f"{name}.json"

    def _write(self, region: str, name: str, document: Document) -> None:
        path = self._path(region, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(document), encoding="utf-8")
        os.replace(partial, path)
        self._rows[region, name] = document
