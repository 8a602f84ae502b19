"""The record of a run: `.runs/<id>/` with run file, plan, ledger, logs and results.

A file is written beside its name and renamed, so a reader sees the old one or the new one, never half of one.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import files
from harness.errors import Busy, InvalidInput, NotFound, did_you_mean
from harness.paths import runs_dir

ASIDE = "set-aside"  # in the record of a run that another verb than `run` or `train` has made for itself


def new_id(name: str, now: datetime | None = None) -> str:
    """<run file's name>-<UTC date and time>-<4 hex>: sorts by time and fits SageMaker's 63 characters."""
    now = now or datetime.now(UTC)
    return f"{name[:31]}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


@dataclass(frozen=True)
class Holder:
    """A command that works on a run."""

    verb: str
    pid: int


@dataclass(frozen=True)
class Record:
    """One run's directory. Everything in it is plain files."""

    id: str
    path: Path

    @property
    def log(self) -> Path:
        """The training job's output."""
        return self.path / "logs" / "train.log"

    def endpoint_log(self, name: str) -> Path:
        """An endpoint's output, where it was kept."""
        return self.path / "logs" / f"{name}.log"

    @property
    def begun(self) -> datetime | None:
        """When it began: the time in its id."""
        match = re.search(r"(\d{8}-\d{6})-[0-9a-f]{4}$", self.id)
        return datetime.strptime(match.group(1), "%Y%m%d-%H%M%S").replace(tzinfo=UTC) if match else None

    def set_aside(self, verb: str) -> None:
        """Mark it as something that `verb` has made for itself: it is never the newest run."""
        self.write_text(ASIDE, f"{verb}\n")

    def write_json(self, name: str, value: Any) -> Path:
        """Write `name` in one step."""
        return self.write_text(name, json.dumps(value, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> Path:
        return files.write_text(self.path / name, text)

    def read_json(self, name: str) -> Any:
        """The value, or None where the file is not there (yet)."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise InvalidInput(
                f"{self.path / name} is damaged: {error}", hint="delete the run and start anew"
            ) from None

    @contextmanager
    def held(self, verb: str) -> Iterator[None]:
        """Hold the run while `verb` works on it. Raises Busy naming who holds it; a crash lets go of it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a+", encoding="utf-8") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                who = handle.read().strip() or "another command"
                raise Busy(f"run {self.id} is held by {who}", hint="wait for it, or end it with Ctrl-C") from None
            handle.truncate(0)
            handle.write(f"`harness {verb}` (process {os.getpid()})")
            handle.flush()
            yield

    def holder(self) -> Holder | None:
        """Who holds the run; None where nobody does. It takes no lock, so it is in nobody's way."""
        import psutil

        lock = self.path / "lock"
        try:
            match = re.fullmatch(r"`harness ([a-z]+)` \(process (\d+)\)", lock.read_text(encoding="utf-8").strip())
            if match is None:
                return None
            process = psutil.Process(int(match[2]))
            # A process that is younger than the lock has the number of one that has ended.
            alive = process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= lock.stat().st_mtime + 1
        except (FileNotFoundError, psutil.Error):
            return None
        return Holder(match[1], process.pid) if alive else None

    def note(self, event: str, **details: Any) -> None:
        """Append one line to the ledger, on disk before this returns."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **details})
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "ledger.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")
            handle.flush()
            os.fsync(handle.fileno())

    def ledger(self) -> Iterator[dict[str, Any]]:
        """The ledger's lines; one that is not an event, such as the torn last one after a crash, is left out."""
        try:
            lines = (self.path / "ledger.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and "event" in row:
                yield row


def create(run_id: str, run_file: Path, texts: dict[str, str]) -> Record:
    """A new record with a copy of its run file and `texts` (name -> content): there whole, or not there."""
    record = Record(run_id, runs_dir() / run_id)
    record.path.parent.mkdir(parents=True, exist_ok=True)
    partial = record.path.with_name(f".{run_id}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        shutil.copyfile(run_file, partial / "run.toml")
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
        os.replace(partial, record.path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return record


def all_records() -> list[Record]:
    """Every run below the current directory, newest first."""
    folder = runs_dir()
    found = [p for p in folder.iterdir() if (p / "run.toml").is_file()] if folder.is_dir() else []
    return [Record(p.name, p) for p in sorted(found, key=_when, reverse=True)]


def _when(path: Path) -> str:
    match = re.search(r"(\d{8}-\d{6}-[0-9a-f]{4})$", path.name)
    return match.group(1) if match else ""


def find(run_id: str | None) -> Record:
    """The run of that id, or whose id starts so, or the newest where None, verifications aside. Raises NotFound."""
    records = all_records()
    if not records:
        raise NotFound("there is no run here yet", f"looked in {runs_dir()}", "start one: harness run RUNFILE")
    if run_id is None:
        for record in records:
            if not (record.path / ASIDE).is_file():
                return record
        what = f"the newest run is {records[0].id}, which {(records[0].path / ASIDE).read_text().strip()} has made"
        raise NotFound("there is no run of yours here yet", what, "name it, or start one: harness run RUNFILE")
    matching = [r for r in records if r.id == run_id] or [r for r in records if r.id.startswith(run_id)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise NotFound(f"{run_id} fits {len(matching)} runs", hint=f"newest: {matching[0].id}")
    raise NotFound(f"no run {run_id}", hint=did_you_mean(run_id, [r.id for r in records]))
