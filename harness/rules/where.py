"""What runs where: which model families train and serve on a stack, from the table that the images carry.

The table is containers/families.json: stack -> families -> model_type -> use -> {ok, why}. Trainer and handler ask it
as they start; here it is asked before anything costs. Without it nothing is known, and nothing refused for it.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files
from typing import Any

USES = {
    "train": "train it",
    "train_tensor": "train it with tensor parallelism",
    "train_pipeline": "train it with pipeline parallelism",
    "train_lora": "train adapters for it",
    "serve": "serve it",
    "continuous_batching": "serve it with continuous batching",
}
# Of a family that nobody has tried these may work all the same; the others need code of the library for the family.
UNTRIED_MAY_WORK = ("train", "train_lora")

Table = dict[str, Any]


@lru_cache(maxsize=1)
def table() -> Table:
    """The carried table; empty where there is none."""
    path = files("containers").joinpath("families.json")
    found: Table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def refusals(model_type: str, stack: str, needs: dict[str, bool], rows: Table | None = None) -> list[str]:
    """What the stack is known not to do with the family. `needs`: use -> whether the run needs it."""
    known = (table() if rows is None else rows).get(stack, {}).get("families", {})
    if not known or not model_type:
        return []
    row = known.get(model_type)
    out: list[str] = []
    for use, what in USES.items():
        if not needs.get(use) or (row is None and use in UNTRIED_MAY_WORK):
            continue
        cell = row.get(use, {"ok": True}) if row is not None else {"ok": False, "why": "it is not in the table"}
        if not cell["ok"]:
            can = ", ".join(name for name, cells in known.items() if cells.get(use, {}).get("ok"))
            if use == "continuous_batching" and any("does not serve it" in text for text in out):
                continue
            out.append(
                f"stack {stack} does not {what}: model_type {model_type}, {cell['why']}; these: {can or 'none'}"
            )
    return out
