"""A user's own measure: score(prompt, completion, answer) of a Python file, in a process of its own.

It runs with the harness's interpreter and the user's rights, as anything that the user starts; in a process of its
own so that what it prints, imports or breaks is not ours. Rows go in and values come back as JSON lines.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from harness.errors import InvalidInput, MissingPrerequisite
from harness.shell import run

SECONDS = 600  # for all rows of a test channel
PROGRAM = """
import json, os, runpy, sys
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what the file prints is no value
score = runpy.run_path(sys.argv[1])["score"]
for line in open(sys.argv[2], encoding="utf-8"):
    out.write(json.dumps(float(score(**json.loads(line)))) + "\\n")
out.close()
"""
HINT = "it needs a function score(prompt, completion, answer) that returns a finite number"


class Row(Protocol):
    """A held-out example."""

    @property
    def prompt(self) -> str: ...

    @property
    def answer(self) -> str: ...


def ask(file: Path, rows: Sequence[Row], answers: Sequence[str]) -> list[float]:
    """A value for each answer. Raises InvalidInput with the last line of what went wrong."""
    asked = [
        json.dumps({"prompt": row.prompt, "completion": row.answer, "answer": text})
        for row, text in zip(rows, answers, strict=True)
    ]
    with tempfile.TemporaryDirectory(prefix="scorer-") as scratch:
        file_of_rows = Path(scratch, "rows.jsonl")
        file_of_rows.write_text("\n".join(asked), encoding="utf-8")
        try:
            said = run([sys.executable, "-c", PROGRAM, file, file_of_rows], cwd=file.parent, timeout=SECONDS)
        except MissingPrerequisite as error:
            why = error.problems[0].why.rpartition("; ")[2] or error.problems[0].what
            raise InvalidInput(f"evaluate.scorer {file} failed", why, HINT) from None
    values = [float(json.loads(line)) for line in said.splitlines()]
    if len(values) != len(rows) or not all(math.isfinite(value) for value in values):
        what = f"evaluate.scorer {file}: {len(values)} values for {len(rows)} rows, or one that is no finite number"
        raise InvalidInput(what, hint=HINT)
    return values
