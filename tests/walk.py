"""Looks the references of docs/internals/first-runs.md up: `python -m tests.walk NAME=CHECKOUT …`.

CHECKOUT is a directory with the repository's files (for torch and torch-xla: site-packages), at the commit that the
page names. Each reference is a path, a line and a part of that line; one that is not there is printed, and ends it
with 1.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "internals" / "first-runs.md"
REFERENCE = re.compile(r"`(?P<name>[a-z-]+) (?P<path>[^`:]+):(?P<line>\d+)` `(?P<part>[^`]+)`")


@dataclass(frozen=True)
class Reference:
    name: str
    path: str
    line: int
    part: str

    def problem(self, checkout: Path) -> str:
        """Why it is not there; empty where it is."""
        file = checkout / self.path
        if not file.is_file():
            return f"{self.name}: no {self.path}"
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        if self.line > len(lines) or self.part not in lines[self.line - 1]:
            return f"{self.name}: {self.path}:{self.line} does not have {self.part!r}"
        return ""


def steps(page: Path = PAGE) -> list[tuple[str, list[Reference], str]]:
    """(step, its references, what holds it) of each row of the page's walks."""
    found = []
    for row in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in row.strip().strip("|").split(" | ")]
        if len(cells) == 3 and (references := [*REFERENCE.finditer(cells[1])]):
            parts = [Reference(m["name"], m["path"], int(m["line"]), m["part"]) for m in references]
            found.append((cells[0], parts, cells[2]))
    return found


def main(words: list[str]) -> int:
    checkouts = {name: Path(folder) for name, _, folder in (word.partition("=") for word in words)}
    references = [one for _, parts, _ in steps() for one in parts if one.name in checkouts]
    problems = [text for one in references if (text := one.problem(checkouts[one.name]))]
    print("\n".join(problems), end="\n" if problems else "")
    print(f"{len(references) - len(problems)} of {len(references)} references are there")
    return 1 if problems or not references else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
