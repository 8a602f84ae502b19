"""Models whose shapes are carried along, and those of a directory. data/models.json says where each was read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from harness.errors import InvalidInput
from harness.estimate.architecture import Architecture, from_config


@dataclass(frozen=True)
class KnownModel:
    """One model of data/models.json. `published` is the number of parameters its makers give."""

    id: str
    aliases: tuple[str, ...]
    licence: str
    config: dict[str, Any]
    source: str
    published: int
    published_source: str

    @property
    def architecture(self) -> Architecture:
        return from_config(self.config, self.id)


@lru_cache(maxsize=1)
def known() -> dict[str, KnownModel]:
    """Every carried model by its hub id; no aliases."""
    raw = json.loads(files("harness.estimate").joinpath("data/models.json").read_text(encoding="utf-8"))
    out = {}
    for item in raw["models"]:
        where = item["config_source"]
        source = f"{where['repository']} {where['path']} at {where['commit']} ({where['licence']})"
        out[item["id"]] = KnownModel(
            id=item["id"],
            aliases=tuple(item["aliases"]),
            licence=item["licence"],
            config=item["config"],
            source=source,
            published=item["published_parameters"],
            published_source=item["published_source"],
        )
    return out


def find(name: str) -> KnownModel | None:
    """The carried model of that hub id, asset or alias; case does not matter on the hub either."""
    wanted = name.lower()
    for model in known().values():
        if wanted in (model.id.lower(), *(a.lower() for a in model.aliases)):
            return model
    return None


def of_directory(folder: Path) -> Architecture:
    """The shapes of a model directory. Raises InvalidInput where its config.json is missing or not one."""
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path}: not a readable config.json", str(error)) from None
    if not isinstance(raw, dict):
        raise InvalidInput(f"{path}: not a JSON object")
    return from_config(raw, str(path))


def architecture_of(name: str) -> tuple[Architecture, str] | None:
    """Shapes and where they come from, for what a run file calls its model; None for a hub id that is not carried."""
    if name.startswith((".", "/")):
        return of_directory(Path(name)), f"{name}/config.json"
    model = find(name)
    return (model.architecture, model.source) if model else None
