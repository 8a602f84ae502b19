"""What a run uploads, as files on this machine: the base model and the data channels. The same on every platform."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from containers import rows
from harness import assets
from harness.assets import datasets, models
from harness.errors import MissingPrerequisite, Problem
from harness.paths import CACHE
from harness.record import Record
from harness.spec.runfile import RunFile

Say = Callable[[str], None]


def model_folder(run: RunFile, say: Say) -> Path | None:
    """The base model's directory, fetched and converted if it is an asset; None where the job downloads it."""
    if run.model.id in assets.MODELS:
        return models.directory(assets.MODELS[run.model.id], CACHE, say)
    return Path(run.model.id) if run.model.is_directory else None


def size_of(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_disk(record: Record, model: Path) -> None:
    """Raises MissingPrerequisite where the model cannot be trained on this machine with the disk that is free."""
    if found := disk_problems(record, size_of(model)):
        raise MissingPrerequisite.of(found)


def disk_problems(record: Record, model: int) -> list[Problem]:
    """Whether a model of so many bytes can be trained here with the disk that is free.

    Two checkpoints (each six times a bf16 model: weights and optimizer in fp32), artifact and archive.
    """
    need, free = 14 * model + 200_000_000, shutil.disk_usage(record.path).free
    if free >= need:
        return []
    what = f"{free / 1e9:.1f} GB of disk are free, training needs up to {need / 1e9:.1f} GB"
    return [Problem(what, "checkpoints, artifact and its archive", "free some, or set HARNESS_RUNS_DIR")]


def channels(run: RunFile, record: Record, say: Say) -> dict[str, Path]:
    """The data files by channel, made if they are not there; `test` stays with the harness."""
    folder = record.path / "channels"
    if run.data.id in assets.DATA_SETS:
        made = {name: folder / name / f"{name}.jsonl" for name in datasets.CHANNELS}
        if all(path.exists() for path in made.values()):
            return made
        assert run.data.examples and run.data.prompt and run.data.labels  # the plan has checked
        found = datasets.examples(assets.DATA_SETS[run.data.id], CACHE, say)
        split = datasets.split(found, run.data.examples.model_dump(), run.data.seed)
        return datasets.write_channels(split, run.data.prompt, run.data.labels, folder)
    given = {k: v for k in datasets.CHANNELS if (v := getattr(run.data, k)) is not None}
    listed = {k: [v] if isinstance(v, str) else v for k, v in given.items()}
    return {k: _one(v, folder / k) for k, v in listed.items() if not v[0].startswith("s3://")}


def _one(sources: list[str], folder: Path) -> Path:
    """One file as it is; several, a directory's and compressed ones as a directory of links and unpacked copies."""
    found = rows.files([Path(source) for source in sources])
    if len(found) == 1 and not rows.is_compressed(found[0]):
        return found[0]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, path in enumerate(found):
        name = path.stem if rows.is_compressed(path) else path.name
        target = folder / f"{number:05d}-{name}"
        if rows.is_compressed(path):
            with rows.opened(path) as packed, target.open("wb") as plain:
                shutil.copyfileobj(packed, plain, 1 << 20)
        else:
            target.symlink_to(path.resolve())
    return folder
