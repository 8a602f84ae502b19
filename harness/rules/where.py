"""What runs where: which model types train and serve on a stack, as a table that tests write elsewhere.

The table is data beside this module (where.json); without it nothing is known, and nothing is refused for it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

KEYS = ("trains", "trains_tp", "trains_pp", "lora", "serves")


@dataclass(frozen=True)
class Row:
    """One model type on one stack. None: not known."""

    model_type: str
    stack: str
    trains: bool | None = None
    trains_tp: bool | None = None
    trains_pp: bool | None = None
    lora: bool | None = None
    serves: bool | None = None
    evidence: str = ""


def parse(text: str) -> tuple[Row, ...]:
    """Rows of a JSON list of objects; keys that are not known here are passed over."""
    known = {"model_type", "stack", "evidence", *KEYS}
    return tuple(Row(**{k: v for k, v in item.items() if k in known}) for item in json.loads(text))


@lru_cache(maxsize=1)
def table() -> tuple[Row, ...]:
    """The carried table; empty where there is none yet."""
    path = files("harness.rules").joinpath("where.json")
    return parse(path.read_text(encoding="utf-8")) if path.is_file() else ()


def refusals(model_type: str, stack: str, needs: dict[str, bool], rows: tuple[Row, ...] | None = None) -> list[str]:
    """What the stack is known not to do with the model type. `needs`: key -> whether the run needs it."""
    words = {
        "trains": "train it",
        "trains_tp": "train it with tensor parallelism",
        "trains_pp": "train it with pipeline parallelism",
        "lora": "train adapters for it",
        "serves": "serve it",
    }
    out = []
    for row in table() if rows is None else rows:
        if (row.model_type, row.stack) != (model_type, stack):
            continue
        for key in KEYS:
            if needs.get(key) and getattr(row, key) is False:
                evidence = f" ({row.evidence})" if row.evidence else ""
                out.append(f"stack {stack} does not {words[key]}: model_type {model_type}{evidence}")
    return out
