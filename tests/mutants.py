"""Small changes of the pure core, and which of them no test sees: `make mutants` writes docs/internals/mutants.md.

mutmut changes one operator, constant or argument at a time (`[tool.mutmut]` in pyproject.toml has modules and tests)
and runs the tests of that function. It comes in an environment of its own that uv makes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "internals" / "mutants.md"
VERSION = "3.8.1"
HEAD = f"""# Small changes of the core that no test sees

Made by `make mutants`: mutmut {VERSION} changes one operator, constant or argument at a time in modules that are
policy without a device, and runs the tests that call the function. A change is seen where a test is red or does
not end. Not every unseen change is a gap: texts of messages, and changes that mean the same, are among them.

| module | changes | seen | share |
|---|---|---|---|
"""


def run() -> None:
    python = ROOT / ".venv" / "bin" / "python"
    words = ["-m", "uv", "run", "--no-project", "--python", python, "--with", f"mutmut=={VERSION}"]
    words += [
        "--with-requirements",
        ROOT / "locks" / "harness.txt",
        "python",
        "-m",
        "mutmut",
        "run",
        "--max-children",
        "2",
    ]
    subprocess.run([python, *words], cwd=ROOT, check=True)


def page() -> str:
    """A row for each module, and the names of the changes that no test sees by function."""
    rows, unseen, totals = [], [], [0, 0]
    for path in sorted((ROOT / "mutants").rglob("*.py.meta")):
        codes = json.loads(path.read_text())["exit_code_by_key"]
        if not codes:
            continue
        name = str(path.relative_to(ROOT / "mutants")).removesuffix(".meta")
        seen = sum(code != 0 for code in codes.values())
        rows.append(f"| `{name}` | {len(codes)} | {seen} | {seen / len(codes):.0%} |")
        totals = [totals[0] + len(codes), totals[1] + seen]
        functions: dict[str, int] = {}
        for key, code in codes.items():
            if code == 0:
                function = key.rpartition("__mutmut_")[0].rpartition(".")[2].lstrip("x_").replace("ǁ", ".").strip(".")
                functions[function] = functions.get(function, 0) + 1
        worst = sorted(functions.items(), key=lambda item: -item[1])
        unseen.append(f"* `{name}`: " + ", ".join(f"{f} {n}" for f, n in worst))
    rows.append(f"| all | {totals[0]} | {totals[1]} | {totals[1] / totals[0]:.0%} |")
    return HEAD + "\n".join(rows) + "\n\nUnseen, by function:\n\n" + "\n".join(unseen) + "\n"


if __name__ == "__main__":
    run()
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE.relative_to(ROOT)} written\n")
